"""Predictions: the label maps of a run, by the keys of the data set; and those that have truth, measured one by one.

Memory: label maps stay encoded, 2 to 3 kB each: 100,000 images take about 300 MB.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np

from diffseg.evaluation.scores import View
from diffseg.types import Integer
from pipeline.datasets.samples import NEEDED, RIDGES, SEGMENTS, check_instances, instances_of
from pipeline.derived.corrections import CORRECTED
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.score import RUN, LeftOut, Prediction, Work, decode_truths, label_map_of, or_reason
from pipeline.evaluation.truth import Truth, TruthSample
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map, encode_label_map

T = TypeVar("T")
LabelMap = Integer[np.ndarray, "_ _"]
Measure = Callable[
    [Prediction, LabelMap, Sequence[LabelMap], View], T
]  # label map, truths, and their view; may raise LeftOut
REPEATS = LeftOut("a key that repeats in the run")


class Predictions:
    """The label maps of a run, found by the whole key, or by the last part of its path where that is unique."""

    def __init__(
        self,
        ledger: Ledger,
        protocol: Protocol,
        *,
        keep: Sequence[str] = (),
        instances: str = SEGMENTS,
        only: frozenset[str] | None = None,
    ) -> None:
        """keep: columns that are kept too. instances: their kind. only: keys whose path ends in one of these names."""
        check_instances(ledger, instances)
        self.name, self._instances = str(ledger), instances
        self._found: dict[str, Prediction | LeftOut] = {}
        self._by_name: dict[str, str | None] = {}  # None: several keys end so
        self._clusters = {each.name: n for n, each in enumerate(ledger.categories_table)}
        self._asked, self._met = set[str](), set[str]()
        columns = ["key", "status", "width", "height", "label_map", *keep] + ["segments"] * bool(self._clusters)
        columns += ["shard", "index", *NEEDED] * (instances == RIDGES)
        self._example: str | None = None
        for stored in ledger.rows(columns, uncut=True):
            row = ledger.at_cut(stored)
            key = protocol.key_of(row["key"])
            self._example = key if self._example is None else min(self._example, key)
            if only is None or _last(key) in only:
                self._add(key, row, keep, stored)
        if self._example is None:
            raise ConfigError(f"{ledger}: the run has no rows yet, there is nothing to evaluate")

    def _add(self, key: str, row: Mapping[str, Any], keep: Sequence[str], stored: Mapping[str, Any]) -> None:
        if key in self._found:
            self._found[key] = REPEATS
            return
        name = _last(key)
        self._by_name[name] = None if name in self._by_name else key
        if row["status"] != OK:
            self._found[key] = LeftOut("failed in the run", row["status"])
            return
        clusters = None
        if self._clusters:
            named = ((each["id"], each["category"]) for each in row["segments"])
            clusters = {id_: self._clusters[category] for id_, category in named if category}
        size, label_map = (row["height"], row["width"]), row["label_map"]
        if not isinstance(label_map, bytes):  # at another cut
            label_map = encode_label_map(label_map)
        parts = None
        if self._instances != SEGMENTS:
            own = decode_label_map(label_map)
            parts = encode_label_map(instances_of(self._instances, own, stored, own, CORRECTED in row)[0])
        self._found[key] = Prediction(label_map, size, clusters, {name: row[name] for name in keep}, parts)

    def __getitem__(self, key: str) -> Prediction | LeftOut:
        """The prediction for a sample of the truth."""
        self._asked.add(key)
        own_key = key if key in self._found else self._by_name.get(_last(key), "")
        if own_key is None:
            return REPEATS
        if own_key not in self._found:
            return LeftOut("no row in the run")
        self._met.add(own_key)
        return self._found[own_key]

    @property
    def never_asked(self) -> int:
        """Keys without truth."""
        return len(self._found.keys() - self._met)

    def check_some_key_matches(self) -> None:
        """Raises ConfigError where the run and the truth have no key in common."""
        if self._asked and not self._met:
            own, asked = self._example, min(self._asked)
            raise ConfigError(
                f"{self.name} has none of the {len(self._asked)} keys of the truth: keys are like {own!r} here and "
                f"like {asked!r} there"
            )


def _last(key: str) -> str:
    return key.rpartition("/")[2]


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
    names = frozenset(_last(sample.key) for sample in samples)
    predictions = Predictions(ledger, protocol, keep=keep, only=names)
    found = {sample.key: or_reason(_measured, sample, predictions[sample.key], protocol, measure) for sample in samples}
    predictions.check_some_key_matches()
    used = {key: each for key, each in found.items() if not isinstance(each, LeftOut)}
    left_out = tuple(f"{key}: {' '.join(each.args)}".strip() for key, each in found.items() if key not in used)
    if len(used) < 2:
        why = "".join(f": {line}" for line in left_out[:1])
        raise ConfigError(f"{ledger}: two images with truth are needed at least, {len(used)} can be used{why}")
    truths = (data for each in samples if each.key in used for data in (each.key.encode(), *each.label_maps))
    sha256 = hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in truths)).hexdigest()
    return Labelled(tuple(used.values()), left_out, sha256)


def _measured(sample: TruthSample, labelled: Prediction | LeftOut, protocol: Protocol, measure: Measure[T]) -> T:
    if isinstance(labelled, LeftOut):
        raise LeftOut(*labelled.args)
    truths = decode_truths(sample, protocol)
    label_map = label_map_of(RUN, Work(sample, {RUN: labelled}), truths[0].shape)
    view = protocol.view(*truths[0].shape)
    return measure(labelled, label_map, [view.sample(each) for each in truths], view)
