"""The reference image, labelled by every worker before it gets work, and again as it goes: a device that computes
wrongly is found by it.
"""

from functools import cache
from pathlib import Path

import numpy as np

from diffseg.evaluation.partition import covering, overlaps
from diffseg.types import IGNORE, AttentionError
from pipeline.errors import ConfigError, DeviceMismatch
from pipeline.inputs.decode import decode
from pipeline.run.layout import REFERENCE
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map, encode_label_map
from pipeline.worker.labeling import Segmenter

PICTURE = Path(__file__).parent / "data" / "reference.png"  # a generated scene; runs hold labels of it: it stays
LEAST = 0.9  # covering; other hardware moves borders by a pixel, a broken device moves everything
EVERY = 1024  # images between two checks of a device that labels: a thousandth of its time


class DeviceCheck:
    """Holds a worker's labels of the reference image against those of the run's first worker."""

    def __init__(self, ledger: Ledger) -> None:
        self._store, self._name = ledger.store, f"{ledger}/{REFERENCE}"
        self._expected: np.ndarray | None = None
        self._checked = 0

    def is_due(self, labelled: int) -> bool:
        """Whether the device must be checked again. labelled: samples, by the worker so far."""
        return labelled >= self._checked + EVERY

    def check(self, segmenter: Segmenter, labelled: int = 0) -> None:
        """Label the reference image; the first worker of a run makes the labels that the others are held against.

        Raises DeviceMismatch where the labels differ by more than rounding can explain. A model that gives no attention
        agrees with others of its kind alone: it is for the breaker to stop a run of such.
        """
        own = _labels(segmenter)
        if self._expected is None:
            first = self._store.put_new(REFERENCE, encode_label_map(own))
            try:
                self._expected = own if first else decode_label_map(self._store.get(REFERENCE))
            except (ConfigError, ValueError) as error:
                raise ConfigError(f"{self._name}: no label map; `diffseg verify --repair` sets it aside") from error
        agreement = 0.0
        if own.shape == self._expected.shape:
            agreement = covering(*overlaps(own + 1, self._expected + 1))  # what has no labels counts as a segment too
        if agreement < LEAST:
            raise DeviceMismatch(f"its labels of the reference image cover {agreement:.0%} of {self._name}")
        self._checked = labelled


def _labels(segmenter: Segmenter) -> np.ndarray:
    image = _picture()
    try:
        return segmenter.segment([image])[0].label_map
    except AttentionError:
        return np.full(image.shape[:2], IGNORE, np.int32)


@cache
def _picture() -> np.ndarray:
    return decode(PICTURE.read_bytes())
