"""Clients of stores: one of each for a process, without hidden retries.

The only file that uses private names of fsspec, s3fs, gcsfs and adlfs; `tests/test_private_names.py` says which
versions have them.
"""

import inspect
import json
from functools import cache
from threading import Lock
from types import MethodType
from typing import Any

import fsspec

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": 10,
            "read_timeout": 60,
            "max_pool_connections": 32,
        },
    },
    "gs": {"use_listings_cache": False, "requests_timeout": 60},
    "abfs": {"use_listings_cache": False, "connection_timeout": 10, "read_timeout": 60},
}
_making = Lock()


def client_of(protocol: str, url: str) -> tuple[Any, str]:
    """The client of a URL's store, and the path by which it knows the URL.

    Raises ImportError where the package of the protocol is not installed; ValueError, OSError for settings it refuses.
    """
    kind = fsspec.get_filesystem_class(protocol)
    options = {**_OPTIONS.get(protocol, {}), **kind._get_kwargs_from_urls(url)}
    with _making:
        return _connected(protocol, json.dumps(options, sort_keys=True)), kind._strip_protocol(url)


@cache
def _connected(protocol: str, options: str) -> Any:
    """One client for the process: fsspec alone would make one a thread, each with connections of its own."""
    fs = fsspec.filesystem(protocol, skip_instance_cache=True, **json.loads(options))
    match protocol:
        case "s3":
            fs.retries = 1
        case "gs" if hasattr(request := type(fs)._request, "__wrapped__"):
            fs._request = MethodType(request.__wrapped__, fs)
        case "abfs":
            fs.service_client._config.retry_policy.total_retries = 0
    return fs


def lists_by_prefix(client: Any) -> bool:
    """Whether a store filters by the beginning of names itself, rather than list all of them."""
    return "prefix" in inspect.signature(getattr(client, "_find", client.find)).parameters
