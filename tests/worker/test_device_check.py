"""A worker whose device computes wrongly gets no work: the reference image finds it, at start or as it goes."""

import threading

import numpy as np
import pytest

from diffseg.types import AttentionError, Segmentation
from infra.scenes.scene import draw_scene
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import DeviceMismatch
from pipeline.inputs.decode import decode
from pipeline.run.layout import REFERENCE
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker import device_check
from pipeline.worker.device_check import PICTURE, DeviceCheck
from pipeline.worker.labeling import Segmenter
from pipeline.worker.worker import Worker
from tests.conftest import a_run


class Broken(FakeSegmenter):
    """Labels that come from nowhere."""

    def segment(self, images):
        random = np.random.default_rng(1)
        return [Segmentation(random.integers(0, 9, image.shape[:2]).astype(np.int32), (), 1.0) for image in images]


class Rounding(FakeSegmenter):
    """The labels of other hardware: borders a pixel off."""

    def segment(self, images):
        return [
            Segmentation(np.roll(result.label_map, 1, 0), result.segments, 1.0) for result in super().segment(images)
        ]


class Empty(FakeSegmenter):
    """A model whose attention is no number."""

    def segment(self, images):
        raise AttentionError("NaN", tuple(range(len(images))))


def test_the_picture_is_the_scene_that_runs_of_0_1_0_hold_labels_of():
    scene = draw_scene(np.random.default_rng(2308_12469), (256, 256))
    assert np.array_equal(decode(PICTURE.read_bytes()), scene.image)


def test_the_first_worker_makes_the_reference_and_its_like_agree(ledger):
    for _ in range(2):
        DeviceCheck(ledger).check(FakeSegmenter())
    assert ledger.store.exists(REFERENCE)
    DeviceCheck(ledger).check(Rounding())


@pytest.mark.parametrize(("first", "second"), [(FakeSegmenter, Broken), (FakeSegmenter, Empty), (Empty, FakeSegmenter)])
def test_a_worker_that_computes_otherwise_is_unfit(ledger, first, second):
    DeviceCheck(ledger).check(first())
    with pytest.raises(DeviceMismatch, match=r"cover \d+% of .*/reference.png"):
        DeviceCheck(ledger).check(second())


def test_workers_without_any_attention_agree_so_that_the_breaker_can_judge(ledger):
    DeviceCheck(ledger).check(Empty())
    other = DeviceCheck(ledger)
    other.check(Empty())
    other.check(Empty())


def test_an_unfit_worker_labels_nothing_and_the_run_ends_complete(shards, tmp_path, caplog):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
    DeviceCheck(ledger).check(FakeSegmenter())
    made: list[Worker] = []

    def build():
        segmenter = Broken() if len(made) == 1 else FakeSegmenter(0.01)
        worker = Worker(ledger, segmenter, device_check=DeviceCheck(ledger))
        made.append(worker)
        worker.check_device()
        return worker

    pool = LocalPool(build, workers=3)
    drive(ledger, pool, ledger.unfinished(), Counters())
    pool.close()

    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert caplog.text.count("worker left out") == 1
    assert all(row["num_segments"] == 2 for row in ledger.rows())
    assert len(made) == 3


class Failing(Segmenter):
    """A device that is sound for a number of images, then does as a bad one."""

    batch_size = 2

    def __init__(self, images, bad):
        self.left, self.bad, self.is_bad = images, bad, threading.Event()

    def segment(self, images):
        self.left -= len(images)
        if self.left >= 0:
            return FakeSegmenter().segment(images)
        self.is_bad.set()
        return self.bad.segment(images)


class Raising(FakeSegmenter):
    """A device that is lost to its process, as older versions of torch tell it."""

    def segment(self, images):
        raise RuntimeError("CUDA error: unspecified launch failure")


@pytest.mark.parametrize("bad", [Broken(), Empty(), Raising()], ids=["wrong", "nan", "raises"])
def test_a_device_that_goes_bad_in_mid_run_commits_nothing_that_it_made(shards, tmp_path, monkeypatch, bad):
    monkeypatch.setattr(device_check, "EVERY", 1)  # image: every window, a short one too
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
    device, turn = Failing(6, bad), threading.Lock()
    made: list[Worker] = []

    def build():
        with turn:  # workers are built side by side: one of them has the device
            worker = Worker(ledger, FakeSegmenter() if made else device, device_check=DeviceCheck(ledger))
            made.append(worker)
        if worker is not made[0]:
            device.is_bad.wait(20)
        worker.check_device()
        return worker

    pool = LocalPool(build, workers=2)
    drive(ledger, pool, ledger.unfinished(), Counters())
    pool.close()

    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert [(row["status"], row["num_segments"]) for row in ledger.rows()] == 17 * [("ok", 2)]
    assert device.is_bad.is_set()
    assert made[0].timer.rows >= 4, "a window was whole, and not committed"


def test_a_sample_that_gives_no_attention_is_to_blame_where_the_device_is_sound(shards, tmp_path):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards[:1])
    looks: list[tuple[int, ...]] = []

    class Picky(FakeSegmenter):
        def segment(self, images):
            looks.extend(image.shape for image in images if image.shape[0] == 256)
            if any((image[0] < 60).mean() > 0.5 for image in images):
                raise AttentionError("NaN", tuple(i for i, image in enumerate(images) if (image[0] < 60).mean() > 0.5))
            return super().segment(images)

    worker = Worker(ledger, Picky(batch_size=2), device_check=DeviceCheck(ledger))
    worker.check_device()
    list(worker.run(ledger.missing()))

    statuses = [row["status"] for row in ledger.rows()]
    assert set(statuses) == {"ok", "model_nan"}
    windows = {place // 4 for place, status in enumerate(statuses) if status != "ok"}
    assert len(looks) == 1 + len(windows), "once at start, and before each window with such a row is committed"
