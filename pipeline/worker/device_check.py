"""The reference image, labelled by every worker before it gets work, and again as it goes: a device that computes
wrongly is found by it.
"""

import numpy as np

from diffseg.evaluation.partition import covering, overlaps
from diffseg.scenes.scene import draw_scene
from diffseg.types import IGNORE, AttentionError
from pipeline.errors import DeviceMismatch
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map, encode_label_map
from pipeline.worker.labeling import Segmenter

REFERENCE = "reference.png"  # the run's first worker's labels of it
SIDE = 256  # pixels
SEED = 2308_12469
LEAST = 0.9  # covering; other hardware moves borders by a pixel, a broken device moves everything
EVERY = 1024  # images between two looks at a device that labels: a thousandth of its time


class DeviceCheck:
    """The run's labels of the reference image, and the model in memory that is held against them."""

    def __init__(self, ledger: Ledger, segmenter: Segmenter) -> None:
        """The first to come makes the labels. Raises as `check`."""
        self._segmenter, self._name = segmenter, f"{ledger}/{REFERENCE}"
        mine = _labels(segmenter)
        if ledger.store.put_new(REFERENCE, encode_label_map(mine)):
            self._labels = mine
        else:
            self._labels = decode_label_map(ledger.store.get(REFERENCE))
            self._compare(mine)

    def check(self) -> None:
        """Label the image again.

        Raises DeviceMismatch where the labels differ by more than rounding can explain. A model that gives no attention
        agrees with others of its kind alone: it is for the breaker to stop a run of such.
        """
        self._compare(_labels(self._segmenter))

    def _compare(self, mine: np.ndarray) -> None:
        agreement = _agreement(mine, self._labels)
        if agreement < LEAST:
            raise DeviceMismatch(f"its labels of the reference image cover {agreement:.0%} of {self._name}")


def _labels(segmenter: Segmenter) -> np.ndarray:
    image = draw_scene(np.random.default_rng(SEED), (SIDE, SIDE)).image
    try:
        return segmenter.segment([image])[0].label_map
    except AttentionError:
        return np.full((SIDE, SIDE), IGNORE, np.int32)


def _agreement(mine: np.ndarray, theirs: np.ndarray) -> float:
    if mine.shape != theirs.shape:
        return 0.0
    table, unclaimed = overlaps(mine + 1, theirs + 1)  # what has no labels counts as a segment too
    return covering(table, unclaimed)
