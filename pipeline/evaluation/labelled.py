"""The images of a run that have truth, measured one by one: what a calibration and categories are learnt from."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np

from diffseg.evaluation.scores import View
from diffseg.types import Integer
from pipeline.errors import ConfigError
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.score import RUN, LeftOut, Prediction, Work, decode_truths, label_map_of
from pipeline.evaluation.truth import Truth, TruthSample
from pipeline.run.ledger import Ledger

T = TypeVar("T")
LabelMap = Integer[np.ndarray, "_ _"]
Measure = Callable[[Prediction, LabelMap, Sequence[LabelMap], View], T | LeftOut]  # label map, truths, and their view


@dataclass(frozen=True, slots=True)
class Labelled(Generic[T]):
    """What was measured of each image; left_out: a line for each of the others; truth_sha256: of keys and truth."""

    images: tuple[T, ...]
    left_out: tuple[str, ...]
    truth_sha256: str


def measure_labelled(
    ledger: Ledger, truth: Truth, protocol: Protocol, keep: Sequence[str], measure: Measure[T]
) -> Labelled[T]:
    """Measure the images of a truth that the run has. keep: columns of rows that a prediction keeps.

    Raises ConfigError where fewer than two of them can be used.
    """
    samples = [replace(sample, image=None) for sample in truth]
    names = frozenset(sample.key.rpartition("/")[2] for sample in samples)
    predictions = Predictions(ledger, protocol, keep=keep, only=names)
    found = {sample.key: _measured(sample, predictions[sample.key], protocol, measure) for sample in samples}
    predictions.check_some_key_matches()
    used = {key: each for key, each in found.items() if not isinstance(each, LeftOut)}
    left_out = tuple(
        f"{key}: {each.reason} {each.detail}".strip() for key, each in found.items() if isinstance(each, LeftOut)
    )
    if len(used) < 2:
        why = "".join(f": {line}" for line in left_out[:1])
        raise ConfigError(f"{ledger}: two images with truth are needed at least, {len(used)} can be used{why}")
    truths = (data for each in samples if each.key in used for data in (each.key.encode(), *each.label_maps))
    sha256 = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in truths)).hexdigest()
    return Labelled(tuple(used.values()), left_out, sha256)


def _measured(
    sample: TruthSample, labelled: Prediction | LeftOut, protocol: Protocol, measure: Measure[T]
) -> T | LeftOut:
    truths = decode_truths(sample, protocol)
    if isinstance(labelled, LeftOut):
        return labelled
    if isinstance(truths, LeftOut):
        return truths
    label_map = label_map_of(RUN, Work(sample, {RUN: labelled}), truths[0].shape)
    if isinstance(label_map, LeftOut):
        return label_map
    view = protocol.view(*truths[0].shape)
    return measure(labelled, label_map, [view.sample(each) for each in truths], view)
