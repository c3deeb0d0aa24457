"""Evaluation of a data set: every sample of the truth is compared with the label map of its key, or reported.

The truth is streamed; a row per sample and method, and the label maps of the run (`predictions`) stay in memory.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from diffseg.evaluation.bootstrap import Interval, mean_interval
from diffseg.evaluation.matching import DatasetMatching
from diffseg.evaluation.panoptic import RegionPairs, panoptic_quality
from diffseg.evaluation.scores import MEASURES, ImageScore, Summary, summarise
from pipeline.concurrency import ParallelMap, map_here
from pipeline.evaluation.predictions import Predictions
from pipeline.evaluation.recall import Recalled, average_recall
from pipeline.evaluation.score import RUN, LeftOut, Scored, ScoreOrReason, Scorer, Work
from pipeline.evaluation.truth import Truth

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class MethodResult:
    """The scores of one method. rows: one a sample of the truth, scored or left out; left_out: how many, by reason.

    categories, classes: names of those of a table, and of the truth's.
    """

    scores: list[ImageScore] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    categories: Sequence[str] = ()
    classes: Sequence[str] = ()
    matching: DatasetMatching | None = None
    pairs: list[RegionPairs] = field(default_factory=list)
    recalled: list[Recalled] = field(default_factory=list)

    def add(self, method: str, key: str, outcome: ScoreOrReason) -> None:
        """Add one sample."""
        why = ": ".join(filter(None, outcome.args)) if isinstance(outcome, LeftOut) else None
        measures = {name: getattr(getattr(outcome, "score", None), name, None) for name in MEASURES}
        self.rows.append({"key": key, "method": method, **measures, "left_out": why})
        if isinstance(outcome, LeftOut):
            logger.debug("%s, %s: %s", method, key, why)
            self.left_out[outcome.reason] += 1
            self.examples.setdefault(outcome.reason, f"{key} {outcome.detail}".strip())
            return
        self.scores.append(outcome.score)
        if outcome.table is not None and self.matching is not None:
            self.matching.add(*outcome.table)
        self.pairs += [outcome.pairs] if outcome.pairs else []
        self.recalled += [outcome.recalled] if outcome.recalled else []

    @property
    def summary(self) -> Summary | None:
        """The figures; None where no image was scored."""
        return summarise(self.scores) if self.scores else None

    @property
    def average_recall(self) -> dict[str, float]:
        """See `recall.average_recall`; empty where it was not asked for."""
        return average_recall(self.recalled) if self.recalled else {}

    @property
    def by_category(self) -> dict[str, dict[str, float]]:
        """Figures over the whole data set, by what tells the classes of clusters, where these were asked for.

        That is the `names` of categories where each is that of a class, else see `DatasetMatching.classes`.
        """
        if self.matching is None or not self.scores:
            return {}
        mappings, found = self.matching.classes(), {}
        if self.categories and set(self.categories) <= set(self.classes):
            mappings = {"names": np.array([self.classes.index(name) for name in self.categories])}
        for how, class_of in mappings.items():
            counts = self.matching.counts(class_of)
            found[how] = {"accuracy": counts.accuracy, "miou": counts.miou}
            for name, interval in (panoptic_quality(self.pairs, class_of) if self.pairs else {}).items():
                found[how] |= interval.called(name)
        return found


@dataclass(slots=True)
class Evaluation:
    """The result of an evaluation.

    no_truth: for each run its keys that the truth does not have. worst: the lowest figures of the first method.
    """

    results: dict[str, MethodResult]
    no_truth: dict[str, int] = field(default_factory=dict)
    worst: list[tuple[float, Work]] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a sample and method."""
        return [row for result in self.results.values() for row in result.rows]

    def lead(self, measure: str) -> dict[str, Interval]:
        """Lead of the first method over each other one, image by image where both have a score."""
        first, *others = self.results
        figures = {name: np.array([row[measure] for row in self.results[name].rows], float) for name in self.results}
        return {other: mean_interval(figures[first] - figures[other]) for other in others}  # NaN: one has no score


def evaluate(
    truth: Truth,
    runs: Mapping[str, Predictions],
    scorer: Scorer,
    *,
    parallel_map: ParallelMap = map_here,
    worst: int = 0,
    on_image: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Measure every sample of the truth with every method of the scorer.

    runs: by the name they have among the methods. parallel_map: where samples are scored.
    worst: how many images with the lowest leading figure of the first method to keep.
    Raises ConfigError where no key of the truth is a key of the run.
    """
    protocol = scorer.protocol
    evaluation = Evaluation({method: MethodResult() for method in scorer.methods})
    if scorer.tables and protocol.num_classes is not None:
        for method, result in evaluation.results.items():
            result.matching, result.classes = DatasetMatching(protocol.num_classes), list(protocol.classes or ())
            result.categories = [each.name for each in scorer.categories] if method == RUN else ()
    out: deque[Work] = deque()  # read and not scored yet
    for outcomes in parallel_map(scorer, _noted(_pair(truth, runs), out)):
        work = out.popleft()
        for method, outcome in outcomes.items():
            evaluation.results[method].add(method, work.truth.key, outcome)
        first = outcomes[scorer.methods[0]]
        if isinstance(first, Scored):
            ranked = [*evaluation.worst, (getattr(first.score, protocol.leading), work)]
            evaluation.worst = sorted(ranked, key=lambda each: each[0])[:worst]
        on_image()
    for name, predictions in runs.items():
        predictions.check_some_key_matches()
        evaluation.no_truth[name] = predictions.never_asked
    return evaluation


def _pair(truth: Truth, runs: Mapping[str, Predictions]) -> Iterator[Work]:
    seen = set[str]()
    for sample in truth:
        labelled = {name: predictions[sample.key] for name, predictions in runs.items()}
        again = sample.key in seen
        seen.add(sample.key)
        yield Work(sample, labelled, LeftOut("a key that repeats in the truth") if again else None)


def _noted(works: Iterator[Work], out: deque[Work]) -> Iterator[Work]:
    """Keep each sample that is sent to a scorer: images need not be sent back with their scores."""
    for work in works:
        out.append(work)
        yield work
