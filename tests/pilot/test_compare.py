"""What a worker's speed follows from, and that the first batch is not counted."""

from dataclasses import replace

import pytest

from diffseg import DiffSeg
from pipeline.pilot import compare
from pipeline.pilot.compare import Comparing, Labelling, Rates, Timed, named
from pipeline.records import ImageSample, RawSample, Shard
from tests.test_segmenter import Colours, halves

SHARD = Shard("s", "file:///s.tar", 1, "1")
RATES = Rates(500.0, decode=40.0, decode_threads=4, model=5.0, merge=20.0, encode=1000.0, shared_core=False)


def test_beside_a_gpu_decoding_hides_behind_labelling():
    assert RATES.label == pytest.approx(1 / (1 / 5 + 1 / 20 + 1 / 1000))
    assert RATES.worker == RATES.label


def test_decoding_that_is_slower_than_labelling_sets_the_pace():
    assert replace(RATES, decode=0.5).worker == 2.0


def test_without_a_gpu_the_stages_share_a_core():
    rates = replace(RATES, shared_core=True)
    assert rates.worker == pytest.approx(1 / (1 / rates.label + 1 / 40))


@pytest.mark.parametrize(("thresholds", "name"), [((0.5, 0.5, 0.5), "0.5"), ((1.1, 1.0), "1.1,1"), ((2.0,), "2")])
def test_thresholds_are_named_as_label_takes_them(thresholds, name):
    assert named(thresholds) == name


class Waking(Colours):
    """Takes ten seconds for the first pass and half a second for each after it, on a clock of its own."""

    now = 0.0

    def attend(self, pixels, *, features=False):
        self.now += 0.5 if self.passes else 10.0
        return super().attend(pixels)


def measured(monkeypatch, images, batch_size):
    model = Waking()
    monkeypatch.setattr(compare, "perf_counter", lambda: model.now)
    timed = Timed(model)
    labelled = Labelling(timed, Comparing(DiffSeg(timed, batch_size), [(0.5, 0.5)]))
    for index in range(images):
        raw = RawSample(str(index), index, {}, "jpg", 0)
        labelled.take(SHARD, ImageSample(raw, halves(40, 60), (60, 40), "0"))
    labelled.flush()
    return labelled.rates([0.01], [0.02], 2, shared_core=False)


def test_the_first_batch_warms_up_and_is_not_counted(monkeypatch):
    assert measured(monkeypatch, images=6, batch_size=2).model == pytest.approx(4 / 1.0)


def test_a_single_batch_is_all_there_is_to_go_by(monkeypatch):
    rates = measured(monkeypatch, images=2, batch_size=2)
    assert (rates.read, rates.decode, rates.model) == pytest.approx((100, 50, 0.2))
