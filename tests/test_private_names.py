"""Private names of libraries: each is used in one adapter alone, and is there in the versions that are installed."""

import ast
import importlib
import platform
from functools import reduce
from importlib.metadata import version
from pathlib import Path

import adlfs
import pytest

ROOT = Path(__file__).resolve().parents[1]
FUSED, STRICT = "diffseg/models/fused_attention.py", "pipeline/inputs/tar/strict.py"
CLIENTS, RAY = "pipeline/storage/clients.py", "pipeline/cluster/ray_private.py"
TRIED = {  # the last version of each library that every check of the adapters was run with
    "tarfile": "Python 3.11.7",
    "torch": "2.13.0",
    "fsspec": "2026.9.0",
    "s3fs": "2026.9.0",
    "gcsfs": "2026.10.1",
    "adlfs": "2026.8.0",
    "ray": "2.60.0",
}
PRIVATE = {  # the only file that uses them: library, module, and names in it
    FUSED: [
        ("torch", "torch", "_fused_sdp_choice"),
        ("torch", "torch", "ops.aten._scaled_dot_product_flash_attention_for_cpu"),
        ("torch", "torch", "ops.aten._scaled_dot_product_flash_attention"),
        ("torch", "torch", "ops.aten._scaled_dot_product_efficient_attention"),
        ("torch", "torch", "ops.aten._scaled_dot_product_cudnn_attention"),
    ],
    STRICT: [
        ("tarfile", "tarfile", "EOFHeaderError"),
        ("tarfile", "tarfile", "EmptyHeaderError"),
        ("tarfile", "tarfile", "TarInfo.frombuf"),
        ("tarfile", "tarfile", "TarInfo.fromtarfile"),
        ("tarfile", "tarfile", "TarInfo._proc_pax"),
    ],
    CLIENTS: [
        ("fsspec", "fsspec.spec", "AbstractFileSystem._get_kwargs_from_urls"),
        ("fsspec", "fsspec.spec", "AbstractFileSystem._strip_protocol"),
        ("fsspec", "fsspec.asyn", "AsyncFileSystem._find"),
        ("s3fs", "s3fs", "S3FileSystem.retries"),
        ("gcsfs", "gcsfs", "GCSFileSystem._request.__wrapped__"),
    ],
    RAY: [
        ("ray", "ray", "_private.worker._global_node"),
        ("ray", "ray", "_private.state.state.get_draining_nodes"),
        ("ray", "ray", "_private.state.state.job_table"),
        ("ray", "ray", "_private.state.state.actor_table"),
    ],
}
NAMES = [(library, module, name, user) for user, names in PRIVATE.items() for library, module, name in names]


def installed(library: str) -> str:
    return f"Python {platform.python_version()}" if library == "tarfile" else version(library)


def refusal(library: str, name: str, user: str) -> str:
    return f"{library} {installed(library)} has no {name}, which {user} uses; it was tried with {TRIED[library]}"


@pytest.mark.parametrize(("library", "module", "name", "user"), NAMES, ids=[name for _, _, name, _ in NAMES])
def test_a_private_name_is_there(library: str, module: str, name: str, user: str) -> None:
    try:
        reduce(getattr, name.split("."), importlib.import_module(module))
    except AttributeError:
        pytest.fail(refusal(library, name, user))


def test_the_retries_of_azures_client_are_where_they_are_switched_off() -> None:
    account = {"account_name": "devstoreaccount1", "account_key": "a2V5"}
    client = adlfs.AzureBlobFileSystem(**account, skip_instance_cache=True)
    try:
        assert client.service_client._config.retry_policy.total_retries > 0
    except AttributeError:
        pytest.fail(refusal("adlfs", "service_client._config.retry_policy", CLIENTS))


def test_a_private_name_is_used_in_its_adapter_alone() -> None:
    owners = {name.split(".")[-1]: user for _, _, name, user in NAMES if name.split(".")[-1].startswith("_")}
    owners |= {"EOFHeaderError": STRICT, "EmptyHeaderError": STRICT, "_config": CLIENTS, "_private": RAY}
    for path in (path for layer in ("diffseg", "pipeline", "jobs") for path in (ROOT / layer).rglob("*.py")):
        user = path.relative_to(ROOT).as_posix()
        used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        foreign = {name: owners[name] for name in used & owners.keys() if owners[name] != user}
        assert not foreign, f"{user} uses private names of libraries, which belong to their adapters: {foreign}"
