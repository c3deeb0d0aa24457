"""Retries: which failures of storage are transient, how long requests are repeated, and what the others mean.

The libraries' own retries are off (see `clients`), so that one deadline holds and every repeated request is counted.
"""

import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from pipeline.errors import ConfigError, StorageError, StorageFull
from pipeline.logs.text import shown

DEADLINE = 120.0  # seconds for which a request is repeated before it fails
FIRST_DEADLINE = 12.0  # seconds for a host that has never answered: a wrong address must fail in seconds

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FINAL = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EFBIG}
_REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError)
_NO_CREDENTIALS = {
    "NoCredentialsError": "no credentials for this storage were found",
    "PartialCredentialsError": "the credentials for this storage are incomplete",
    "DefaultCredentialsError": "no credentials for this storage were found",
    "CredentialRetrievalError": "the credentials for this storage could not be had",
    "ClientAuthenticationError": "the credentials for this storage were not accepted",
    "ParamValidationError": "a name that this storage does not allow",
}
_BUGS = (TypeError, AttributeError, LookupError, AssertionError)
_PASSING_STATUS = {408, 409, 425, 429}  # beside those of 500 and above
_FULL_STATUS = 507
_DAMAGED_IN_TRANSIT = {"BadDigest", "IncompleteBody", "InvalidDigest", "RequestTimeout", "XAmzContentSHA256Mismatch"}

T = TypeVar("T")
Send = Callable[[str, Callable[[], Any]], Any]  # makes a request; the string is its URL or path, redacted
logger = logging.getLogger(__name__)


class _State:
    """State of retries in this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.retries = 0
        self.answered: set[str] = set()
        self.send: Send = lambda what, call: call()


_state = _State()


def retries() -> int:
    """Requests that this process has repeated so far."""
    return _state.retries


@contextmanager
def sent_by(send: Send) -> Iterator[None]:
    """While the block runs, `send` makes every request of this process."""
    before, _state.send = _state.send, send
    try:
        yield
    finally:
        _state.send = before


def attempt(what: str, call: Callable[[], T]) -> T:
    """Do `call`, and repeat it while it fails transiently. what: the URL or path, redacted, as errors name it.

    It is given up after DEADLINE, or FIRST_DEADLINE where its host has never answered.
    Raises FileNotFoundError and FileExistsError as they are, ConfigError where access is refused, StorageFull where
    space ran out, StorageError for everything that outlasted the deadline.
    """
    failed: list[Exception] = []

    def sent_again(state: RetryCallState) -> None:
        if state.outcome and isinstance(error := state.outcome.exception(), Exception):
            failed.append(error)
        with _state.lock:
            _state.retries += 1

    host = "/".join(what.split("/", 3)[:3])
    limit = DEADLINE if host in _state.answered else FIRST_DEADLINE
    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        wait=wait_random_exponential(multiplier=0.2, max=15),
        stop=stop_after_delay(limit),
        before_sleep=sent_again,
        reraise=True,
    )
    try:
        result: T = retrying(_request, what, call)
    except Exception as error:
        meaning = translate(what, error)
        if not isinstance(meaning, StorageError):
            _state.answered.add(host)
        if meaning is error:
            raise
        raise meaning from error
    finally:
        if failed:
            logger.warning("%s: asked %d times, the last failure: %s", what, 1 + len(failed), _reason(failed[-1]))
    _state.answered.add(host)
    return result


def _request(what: str, call: Callable[[], Any]) -> Any:
    """Send a request. fsspec reports any failure of a web server as a missing file: the server's own status counts."""
    try:
        return _state.send(what, call)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause and type(cause).__module__.startswith("aiohttp") and _status(cause) not in (404, 410):
            raise cause from None
        raise


def translate(what: str, error: Exception) -> Exception:
    """Translate a library's error into one of ours; missing files, existing files and programming errors are kept."""
    if isinstance(error, (FileNotFoundError, *_BUGS)) and not isinstance(error, NotImplementedError):
        return error
    if _is_conflict(error):
        return error if isinstance(error, FileExistsError) else FileExistsError(what)
    if _is_full(error):
        return StorageFull(f"{what}: no space left")
    if type(error).__name__ in _NO_CREDENTIALS:
        return ConfigError(f"{what}: {_NO_CREDENTIALS[type(error).__name__]} ({_reason(error)})")
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{what}: this kind of storage cannot do what is asked of it here")
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return ConfigError(f"{what}: access refused: {_reason(error)}")
    if not _is_transient(error):
        return ConfigError(f"{what}: {_reason(error)}")
    return StorageError(f"{what}: {_reason(error)}")


def _is_transient(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, (*_BUGS, *_REFUSED, NotImplementedError)):
        return False
    if isinstance(error, FileNotFoundError) or _is_conflict(error) or _is_full(error):
        return False
    if type(error).__name__ in _NO_CREDENTIALS or str(error).startswith("Forbidden"):  # the latter: gcsfs' 403
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or _code(error) in _DAMAGED_IN_TRANSIT
    if isinstance(error, OSError) and error.errno in _FINAL:
        return False
    return not isinstance(error, ValueError) or isinstance(error, json.JSONDecodeError)  # a reply cut short


def _is_conflict(error: BaseException) -> bool:
    """Whether a create-only request lost: s3fs reports some stores' 412 as OSError 22, with the reply as its cause."""
    return isinstance(error, FileExistsError) or _status(error) == 412 or _code(error) in ("PreconditionFailed", "412")


def _is_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or _status(error) == _FULL_STATUS


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of any library; None for a truncated body."""
    if type(error).__name__ == "ClientPayloadError":  # aiohttp gives a truncated body a status that no server sent
        return None
    for each in (error, error.__cause__):
        reply: Any = getattr(each, "response", None)
        if isinstance(reply, dict):
            reply = reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
        values = (getattr(each, name, None) for name in ("status", "status_code", "code"))  # aiohttp warns of the last
        for value in chain(values, [reply]):
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _code(error: BaseException) -> str | None:
    reply = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return reply.get("Error", {}).get("Code") if isinstance(reply, dict) else None


def _reason(error: Exception) -> str:
    """The first line of what a library says, without the queries and user names its URLs may carry."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next((line.strip() for line in str(text).splitlines() if line.strip()), type(error).__name__)
    return shown(line[:1000])[:300]
