"""Real object stores on loopback, each for one test session: S3 (SeaweedFS, rclone), Google and Azure emulators."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "bucket"
KEY, READER, OWNER = "AKIDTESTONLY", "AKIDREADONLY", "AKIDOWNER"  # who may write to the bucket, read it, make it
SECRET = "test-only-secret"


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
