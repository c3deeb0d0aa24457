"""Categories named from a few labelled images: a linear classifier of segments, and what it is expected to be worth.

Letters: S segments, F features, C categories.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from diffseg.cut import Cut
from diffseg.evaluation.scores import View
from diffseg.types import Float, Int
from pipeline.categories import learning
from pipeline.categories.categorise import Categorised, Model, check, keep, margins
from pipeline.categories.segments import NEEDED, features_of
from pipeline.concurrency import ParallelMap
from pipeline.errors import ConfigError
from pipeline.evaluation.predictions import LabelMap, measure_labelled
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.score import IGNORED, LeftOut, Prediction
from pipeline.evaluation.truth import Truth
from pipeline.records import Category
from pipeline.run.ledger import Ledger
from pipeline.table.cuts import cuts_of

HEIGHTS = (1.0, 1 / 2, 2.0, 1 / 4, 1 / 8, 0.0)  # of cuts to choose among, times the run's own; 0: every leaf
STRENGTHS = (1.0, 0.1, 10.0)  # of the fit, see `learning.linear`; the cut is chosen with the first
UNKNOWN = (0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.0)  # shares of segments that may be left out for small margins
KEPT = 0.98  # of mIoU, at least, when they are: what is of no category of the truth has small margins
FOLDS = 5  # of cross-validation, by images
Image = tuple[Float[np.ndarray, "S F"], Int[np.ndarray, "S C"]]  # features, and pixels of each category


@dataclass(frozen=True, slots=True)
class Expected:
    """Of pixels in images that a fit has not seen. images: that were used. limit: of the margin."""

    accuracy: float
    miou: float
    limit: float
    images: int


def classify(
    ledger: Ledger,
    truth: Truth,
    protocol: Protocol,
    categories: Sequence[Category],
    name: str,
    command: str,
    parallel_map: ParallelMap,
) -> tuple[Categorised, Expected, tuple[str, ...]]:
    """Fit a classifier to the images of a truth that the run has, and give all segments of the run a category.

    categories: of the protocol's classes. At the ledger's cut, else at that of HEIGHTS which held-out images are best
    at. Also returns why images were left out. Raises ConfigError where two images or two categories are not there.
    """
    check(ledger, name)
    if not categories:
        raise ConfigError("--truth has values: name them with --names FILE, or a --protocol that does")
    own, split = ledger.run.segment.cut or 0.0, ledger.run.segment.split_components
    cuts = [ledger.cut] if ledger.cut else [Cut(height=own * share) for share in HEIGHTS]
    ledger.cut = None  # trees have all of them
    measure = partial(_measured, cuts, split, len(categories))
    measured = measure_labelled(ledger, truth, protocol, NEEDED, measure)
    at = [[image[number] for image in measured.images] for number in range(len(cuts))]
    images, ledger.cut = max(zip(at, cuts, strict=True), key=lambda pair: _Trial(pair[0], STRENGTHS[0]).miou)
    trial = max((_Trial(images, strength) for strength in STRENGTHS), key=lambda each: each.miou)
    limits = np.quantile(trial.margins[trial.counts.any(1)], UNKNOWN).tolist()
    limit = next(each for each in limits if trial.figures(each)[1] >= KEPT * trial.miou)
    rows, biases = learning.linear(*_joined(images), trial.strength)
    if (biases > learning.NEVER).sum() < 2:
        raise ConfigError(f"{ledger}: the truth has one category, and a classifier tells at least two apart")
    model = Model("classifier", rows / trial.heat, biases / trial.heat, np.full(len(biases), limit))
    expected = Expected(*trial.figures(limit), limit, len(images))
    facts: dict[str, Any] = {"segments": len(trial.values), "strength": trial.strength, "expected": asdict(expected)}
    facts["truth_sha256"] = measured.truth_sha256
    return keep(ledger, model, categories, name, command, facts, parallel_map), expected, measured.left_out


class _Trial:
    """Every image predicted by a fit to others. heat: what values are divided by, so that probabilities are honest."""

    def __init__(self, images: Sequence[Image], strength: float) -> None:
        self.strength, self.counts = strength, _joined(images)[1]
        self.values, folds = np.zeros(self.counts.shape), min(FOLDS, len(images))
        fold_of = np.repeat(np.arange(len(images)) % folds, [len(features) for features, _ in images])
        for fold in range(folds):
            rows, biases = learning.linear(
                *_joined([each for at, each in enumerate(images) if at % folds != fold]), strength
            )
            self.values[fold_of == fold] = _joined(images[fold::folds])[0] @ rows.T + biases
        true = self.counts.argmax(1)
        known = self.counts.any(1) & (self.values[np.arange(len(true)), true] > learning.NEVER / 2)

        def loss(log_heat: float) -> float:
            logs = log_softmax(self.values[known] / np.exp(log_heat), axis=1)
            return -float(logs[np.arange(len(logs)), true[known]].sum())

        self.heat = float(np.exp(minimize_scalar(loss, bounds=(-2, 4), method="bounded").x))
        self.margins = margins(self.values / self.heat)[0]
        self.miou = self.figures(0.0)[1]

    def figures(self, limit: float) -> tuple[float, float]:
        """Accuracy of pixels and mIoU of the categories of the truth; what is unknown is wrong."""
        chosen = np.where(self.margins >= limit, self.values.argmax(1), -1)
        table = np.zeros((self.counts.shape[1] + 1, self.counts.shape[1]))
        np.add.at(table, chosen, self.counts)
        right, true = np.diagonal(table[:-1]), table.sum(0)
        either = np.maximum(1, true + table[:-1].sum(1) - right)
        return float(right.sum() / true.sum()), float((right / either)[true > 0].mean())


def _joined(images: Sequence[Image]) -> Image:
    features, counts = (np.concatenate(part) for part in zip(*images, strict=True))
    return features, counts


def _measured(
    cuts: Sequence[Cut],
    split: bool,
    count: int,
    labelled: Prediction,
    _: LabelMap,
    truths: Sequence[LabelMap],
    view: View,
) -> list[Image]:
    """An image at each cut."""
    found = list[Image]()
    for each in cuts_of(labelled.kept, cuts, split=split):
        seen, features = view.sample(each.label_map), features_of(labelled.kept, each.label_map)
        pairs = [seen[held] * count + truth[held] for truth in truths for held in [(seen >= 0) & (truth >= 0)]]
        pixels = np.bincount(np.concatenate(pairs), minlength=len(features) * count)
        found.append((features, pixels.reshape(-1, count)))
    if not all(pixels.any() for _, pixels in found):
        raise LeftOut(IGNORED)
    return found
