"""Scoring of one sample: its truth is decoded once, every method's label map is scored in the protocol's view.

A method is the run itself, a baseline on the same image, or the annotators against each other.
A sample that cannot be scored gives a value with the reason: none is left out of a figure silently.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from diffseg.cut import renumbered
from diffseg.evaluation.baselines import BASELINES, one_segment
from diffseg.evaluation.matching import confusion
from diffseg.evaluation.panoptic import RegionPairs, region_pairs, regions_by
from diffseg.evaluation.scores import ImageScore, average, score_image
from diffseg.types import IGNORE, Integer
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import PROTOCOLS, Protocol
from pipeline.evaluation.recall import Recalled, recalled
from pipeline.evaluation.truth import TruthSample, decode_truth
from pipeline.inputs import decode
from pipeline.records import Category
from pipeline.table.label_map import decode_label_map

T = TypeVar("T")
RUN, AGAINST, HUMANS = "run", "against", "humans"
REFERENCES = (*BASELINES, HUMANS)  # what a run is compared with where nothing else was labelled


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a run for an image.

    label_map: PNG. size: height, width of the upright source image.
    clusters: by id its cluster in the whole run, other ids have none; None: an id is its own cluster.
    kept: columns of the row that were asked for. parts: PNG of its instances; None: its segments.
    """

    label_map: bytes
    size: tuple[int, int]
    clusters: Mapping[int, int] | None = None
    kept: Mapping[str, Any] = field(default_factory=dict)
    parts: bytes | None = None


class LeftOut(Exception):
    """Why an image has no score: a reason, by which images are counted, and details."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Scored:
    """An image's score; where asked for, pixels of each (class, cluster), and those unclaimed, regions, and objects."""

    score: ImageScore
    table: tuple[np.ndarray, np.ndarray] | None = None
    pairs: RegionPairs | None = None
    recalled: Recalled | None = None


ScoreOrReason = Scored | LeftOut
IGNORED = "a truth that ignores every pixel"  # such an image counts in no published figure either


@dataclass(frozen=True, slots=True)
class Work:
    """A sample to measure.

    labelled: the prediction of each run; LeftOut where it has no label map. refused: why no method may score it.
    """

    truth: TruthSample
    labelled: Mapping[str, Prediction | LeftOut]
    refused: LeftOut | None = None


@dataclass(frozen=True, slots=True)
class Scorer:
    """Measures samples with some methods by one protocol.

    tables: also count pixels for a matching over the whole data set. categories: those of a table, for which
    regions are paired. recall: also look which objects its instances find.
    """

    protocol: Protocol
    methods: tuple[str, ...]
    tables: bool = False
    categories: tuple[Category, ...] = ()
    recall: bool = False

    def __call__(self, work: Work) -> dict[str, ScoreOrReason]:
        """One outcome per method. Faults of a sample are values, not exceptions."""
        truths = or_reason(decode_truths, work.truth, self.protocol)
        if why := work.refused or (truths if isinstance(truths, LeftOut) else None):
            return dict.fromkeys(self.methods, why)
        return {method: or_reason(self._score, method, work, truths) for method in self.methods}

    def _score(self, method: str, work: Work, truths: Sequence[np.ndarray]) -> Scored:
        view = self.protocol.view(*truths[0].shape)
        views = [view.sample(truth) for truth in truths]
        if any((each < 0).all() for each in views):
            raise LeftOut(IGNORED)
        if method == HUMANS:
            return self._humans(views)
        prediction = view.sample(label_map_of(method, work, truths[0].shape))
        labelled, classes = work.labelled.get(method), self.protocol.num_classes
        clusters = _clustered(labelled, prediction)
        found = Scored(
            score_image(prediction, views, classes),
            confusion(clusters, views[0], classes) if self.tables and classes is not None else None,
        )
        if method != RUN or not isinstance(labelled, Prediction):
            return found
        try:
            objects = view.sample(self._objects(work.truth, truths[0]))
        except ValueError as error:
            raise LeftOut("no usable instances in the truth", str(error)) from error
        parts = prediction if labelled.parts is None else view.sample(decode_label_map(labelled.parts))
        if self.categories and classes is not None:
            stuff = np.array([not self.protocol.objects or each.thing is False for each in self.categories])
            ours = clusters, np.where(stuff[clusters], 0, parts)  # of no cluster: whatever the last one says
            found = replace(found, pairs=region_pairs(ours, (views[0], objects), len(stuff), classes))
        if self.recall:
            own, owner = regions_by(prediction, parts)
            scores = {segment["id"]: segment["score"] for segment in labelled.kept["segments"]}
            counted = np.where(objects > 0, views[0], IGNORE) if self.protocol.objects else views[0]
            wanted, _ = regions_by(counted, objects)
            found = replace(found, recalled=recalled(own, [scores[id_] for id_ in owner.tolist()], wanted))
        return found

    def _humans(self, views: Sequence[np.ndarray]) -> Scored:
        if len(views) < 2:
            raise LeftOut("a single annotator")
        others = [[*views[:i], *views[i + 1 :]] for i in range(len(views))]
        return Scored(average([score_image(view, rest) for view, rest in zip(views, others, strict=True)]))

    def _objects(self, truth: TruthSample, classes: np.ndarray) -> np.ndarray:
        """The instances of a truth; of one without, each class or region is one."""
        if not self.protocol.objects:
            return np.zeros_like(classes)
        if truth.objects is None:
            raise ValueError("there are none")
        found = decode_truth(truth.objects, PROTOCOLS["regions"])
        if found.shape != classes.shape:
            raise ValueError(f"they are {found.shape}, its label map {classes.shape} (height, width)")
        return found


def _clustered(labelled: Prediction | LeftOut | None, prediction: np.ndarray) -> np.ndarray:
    if not isinstance(labelled, Prediction) or labelled.clusters is None:
        return prediction
    meaning = np.full(int(prediction.max()) + 1, IGNORE)
    for id_, cluster in labelled.clusters.items():
        meaning[id_ : id_ + 1] = cluster  # an id beyond the view is none
    return renumbered(prediction, meaning)


def check_methods(methods: Sequence[str], protocol: Protocol) -> tuple[str, ...]:
    """The methods in the order they are reported, the annotators last.

    Raises ConfigError for none, for an unknown one, for one whose library is absent, for annotators of classes.
    """
    if not methods:
        raise ConfigError(f"nothing to measure: name a run, or --baseline {', '.join(REFERENCES)}")
    for method in methods:
        if method not in (RUN, AGAINST, *REFERENCES):
            raise ConfigError(f"no baseline {method!r}; there are {', '.join(REFERENCES)}")
        if method == HUMANS and protocol.num_classes is not None:
            raise ConfigError(f"the baseline humans needs regions by several annotators, {protocol.name} has classes")
        try:
            BASELINES.get(method, one_segment)(np.zeros((1, 1, 3), np.uint8))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    return tuple(sorted(dict.fromkeys(methods), key=lambda method: method == HUMANS))


def or_reason(measure: Callable[..., T], *given: Any) -> T | LeftOut:
    """What is measured, or why it cannot be, as a value."""
    try:
        return measure(*given)
    except LeftOut as why:
        return why


def decode_truths(truth: TruthSample, protocol: Protocol) -> list[Integer[np.ndarray, "_ _"]]:
    """Every annotator's label map, all of one size. Raises LeftOut."""
    if not truth.label_maps:
        raise LeftOut("no label map in the truth")
    try:
        found = [decode_truth(data, protocol) for data in truth.label_maps]
    except ValueError as error:
        raise LeftOut("unreadable truth", str(error)) from error
    if len(shapes := sorted({each.shape for each in found})) > 1:
        raise LeftOut("annotators of different sizes", f"(height, width): {shapes}")
    return found


def label_map_of(method: str, work: Work, size: tuple[int, int]) -> Integer[np.ndarray, "_ _"]:
    """A method's label map of the whole image, at its own resolution. size: height, width of the truth.

    Raises LeftOut.
    """
    labelled = work.labelled.get(method)
    if isinstance(labelled, LeftOut):
        raise LeftOut(*labelled.args)
    if labelled is None and work.truth.image is None:
        raise LeftOut("no image beside the truth")
    try:
        if labelled is None:
            image = decode.decode(work.truth.image or b"")
            source, label_map = image.shape[:2], BASELINES[method](image)
        else:
            source, label_map = labelled.size, decode_label_map(labelled.label_map)
    except decode.UndecodableImage as error:
        raise LeftOut("unreadable image", str(error)) from error
    except (OSError, SyntaxError) as error:  # what Pillow raises on damaged bytes
        raise LeftOut("unreadable label map", str(error)) from error
    if abs(source[0] * size[1] - source[1] * size[0]) > max(*source, *size):  # of other aspect, but for rounding
        raise LeftOut("another size", f"image {source}, truth {size} (height, width)")
    return label_map
