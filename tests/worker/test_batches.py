"""Batches of a worker: samples of one shape share a pass, in order and within bounds; the next pass is on its way while
this one's labels are made.
"""

import pickle

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import StorageError
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.messages import Heartbeat, Probe, ShardTask
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.worker import sample_loader, window
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, write_shard

WIDE, HIGH = (24, 16), (16, 24)


@pytest.fixture
def mixed(tmp_path):
    """A run over one window of eight photos, wide and high ones by turns."""
    content = [(f"{i:04d}", {"jpg": jpeg(i % 8, (WIDE, HIGH)[i % 2])}) for i in range(8)]
    shard = write_shard(tmp_path / "in" / "m.tar", content)
    return Ledger.start(str(tmp_path / "run"), a_run(window=8), pin([str(shard)]))


def number_of(image):
    """The number a photo was made with."""
    return int((image[0].mean(-1) < 128).sum()) - 4


class Telling(FakeSegmenter):
    """Notes what it is asked for. launches: whether it starts passes."""

    def __init__(self, batch_size, launches=False):
        super().__init__(batch_size=batch_size)
        self.launches, self.asked, self.told = launches, [], list[Heartbeat]

    def launch(self, images):
        self.asked += [("launch", [number_of(image) for image in images])] if self.launches else []
        return self.launches

    def segment(self, images):
        held = {number for beat in self.told() for number in (beat.indices or range(beat.first, beat.last + 1))}
        self.asked.append(("segment", [number_of(image) for image in images], held))
        return super().segment(images)


def labelled(ledger, model, task=None):
    """What a worker asked of a model; every row is there, in order."""
    worker = Worker(ledger, model)
    model.told = lambda: [beat for key, beat in worker.in_flight._heartbeats.items() if key in ("launched", "probe")]
    [shard] = ledger.shards.values()
    list(worker.run([task or ShardTask(shard)]))
    assert [(row["index"], row["status"]) for row in ledger.rows()] == [(i, OK) for i in range(8)]
    assert worker.in_flight.heartbeats() == ()
    return model.asked


def test_samples_of_one_shape_share_a_pass_in_order_and_the_rest_comes_by_its_first_sample(mixed):
    asked = labelled(mixed, Telling(3))
    assert [numbers for _, numbers, _ in asked] == [[0, 2, 4], [1, 3, 5], [6], [7]]


def test_the_fullest_batch_goes_early_where_too_much_memory_is_held(mixed, monkeypatch):
    photo = WIDE[0] * WIDE[1] * 3
    ahead = 2 * 4 + 2
    monkeypatch.setattr(window, "HELD_BYTES", (3 + ahead) * photo)
    asked = labelled(mixed, Telling(4))
    assert [numbers for _, numbers, _ in asked] == [[0, 2], [1, 3, 5], [4, 6], [7]]


def test_a_probe_labels_piece_after_piece_in_plain_order(mixed):
    [shard] = mixed.shards.values()
    asked = labelled(mixed, Telling(8, launches=True), ShardTask(shard, 0, 0, probe=Probe(2, 5)))
    assert [numbers for _, numbers, _ in asked] == [[2, 3], [4, 5], [0, 1], [6, 7]]
    assert [held for _, _, held in asked] == [{2, 3}, {4, 5}, {0, 1}, {6, 7}]


def test_the_next_pass_is_started_before_this_one_is_labelled_and_its_samples_are_told(mixed):
    asked = labelled(mixed, Telling(3, launches=True))
    assert asked == [
        ("launch", [0, 2, 4]),
        ("launch", [1, 3, 5]),
        ("segment", [0, 2, 4], {1, 3, 5}),
        ("launch", [6]),
        ("segment", [1, 3, 5], {6}),
        ("launch", [7]),
        ("segment", [6], {7}),
        ("segment", [7], {7}),
    ]


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


@pytest.mark.parametrize("error", [OutOfMemoryError("CUDA out of memory"), RuntimeError("one image is odd")])
def test_a_pass_that_cannot_start_is_left_to_labelling(mixed, error):
    class Failing(Telling):
        def launch(self, images):
            raise error

    asked = labelled(mixed, Failing(3))
    assert [numbers for _, numbers, _ in asked] == [[0, 2, 4], [1, 3, 5], [6], [7]]


def test_samples_of_a_window_that_is_given_up_are_told_no_more(mixed, monkeypatch):
    def broken(*args, **options):
        yield from list(read_shard(*args, **options))[:4]
        raise StorageError("the line went dead")

    monkeypatch.setattr(sample_loader, "read_shard", broken)
    worker = Worker(mixed, model := Telling(2, launches=True))
    list(worker.run(mixed.missing()))
    assert ("launch", [1, 3]) in model.asked
    assert worker.in_flight.heartbeats() == ()


def test_a_heartbeat_of_scattered_samples_is_under_a_kilobyte():
    beat = Heartbeat("photos-00000-0123456789ab", 977, 10**6, 2 * 10**6, indices=tuple(range(10**6, 10**6 + 192, 3)))
    assert len(beat.indices) == 64
    assert len(pickle.dumps(beat)) < 1024
    assert beat.samples.startswith("1000000, 1000003")
    assert Heartbeat("s", 0, 3, 5).samples == "3-5"
