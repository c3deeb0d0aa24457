"""Categories of a whole run, kept as a derived table whose note holds the model: `extend` needs nothing else.

Letters: S segments, F features, C categories.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from time import process_time
from typing import Any

import numpy as np
from scipy.special import softmax

from diffseg.cut import Cut
from diffseg.models.joint.files import CLIP, DETECTOR
from diffseg.types import Float, Int
from pipeline.categories import learning, words
from pipeline.categories.segments import described, sample
from pipeline.categories.words import Words
from pipeline.concurrency import ParallelMap
from pipeline.derived.joined import CATEGORY, categories_of
from pipeline.derived.note import Note, check_name, read_note, write
from pipeline.errors import ConfigError
from pipeline.records import Category
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.values import encode_values

POINTS = 256  # a centroid, as faiss draws them: more change it little
TOGETHER = 4096  # segments held against all categories at a time: of a thousand they take 32 MB
FARTHEST = 2.0  # distance of opposite vectors
ARRAYS = ("weights", "biases", "limits")  # parameters that are numbers of a model
COLUMNS = {  # by kind of model. distance: 1 less the cosine to the centre; score: probability; margin: to the next
    "clusters": {CATEGORY: "int32", "distance": "float32"},
    "classifier": {CATEGORY: "int32", "margin": "float32", "score": "float32"},
    **dict.fromkeys((CLIP, DETECTOR, words.CROSS), words.COLUMNS),
}


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """The category of highest `weights @ features + biases`, none where it is farther or less clear than its limit."""

    kind: str
    weights: Float[np.ndarray, "C F"]
    biases: Float[np.ndarray, " C"]
    limits: Float[np.ndarray, " C"]

    def best(self, features: Float[np.ndarray, "S F"]) -> tuple[Int[np.ndarray, " S"], list[Float[np.ndarray, " S"]]]:
        """The number of each segment's category from 1 on, 0 where it is unknown; and the other columns."""
        if len(features) > TOGETHER:
            own, others = zip(
                *(self.best(part) for part in np.split(features, range(TOGETHER, len(features), TOGETHER))), strict=True
            )
            return np.concatenate(own), [np.concatenate(each) for each in zip(*others, strict=True)]
        values = features.astype(np.float64) @ self.weights.T + self.biases
        own = values.argmax(axis=1)
        if self.kind == "clusters":
            distance = 1 - values.max(axis=1)
            return np.where(distance <= self.limits[own], own + 1, 0), [distance]
        margin, score = margins(values)
        return np.where(margin >= self.limits[own], own + 1, 0), [margin, score]

    def values(self, ledger: Ledger, window: WindowObject) -> Iterator[Mapping[str, Any]]:
        """Rows of the table for a window's segments."""
        if not (images := list(described(ledger, window))):
            return
        keys = ((index, id_) for index, ids, _ in images for id_ in ids)
        numbers, others = self.best(np.concatenate([features for _, _, features in images]))
        names = ("index", "segment", *COLUMNS[self.kind])
        for key, number, *more in zip(keys, numbers.tolist(), *(each.tolist() for each in others), strict=True):
            yield dict(zip(names, (*key, number or None, *more), strict=True))


def margins(values: Float[np.ndarray, "S C"]) -> tuple[Float[np.ndarray, " S"], Float[np.ndarray, " S"]]:
    """The lead of each segment's most probable category over the next, and its probability."""
    shares = np.sort(np.hstack([np.zeros((len(values), 1)), softmax(values, axis=1)]), axis=1)
    return shares[:, -1] - shares[:, -2], shares[:, -1]


@dataclass(frozen=True, slots=True)
class Categorised:
    """A run with categories. segments: that the model was fitted to; 0 where words name them.

    cut: of the table, None: as it was labelled.
    """

    table: str
    windows: int
    categories: tuple[Category, ...]
    segments: int
    cut: Cut | None


def check(ledger: Ledger, name: str) -> None:
    """Raises ConfigError where no table of categories can be made."""
    check_name(name)
    learning.check_installed()
    if not ledger.run.segment.vectors:
        raise ConfigError(f"{ledger}: a run without vectors, by which segments compare: make one by `label --vectors`")


def cluster(
    ledger: Ledger, count: int, name: str, command: str, seed: int, unknown: float, parallel_map: ParallelMap
) -> Categorised:
    """Group all segments of a run into `count` categories, the largest first.

    unknown: share of a cluster's sample that is too far from its centre. Raises ConfigError for runs without vectors.
    """
    check(ledger, name)
    features = sample(ledger, POINTS * count, seed, parallel_map)
    if len(features) < count:
        raise ConfigError(f"{ledger}: {count} clusters need as many segments at least, there are {len(features)}")
    centroids = learning.centroids_of(features[:, :-1], count, seed)
    limits, weights = np.full(count, FARTHEST), np.hstack([centroids, np.zeros((count, 1))])
    own, [far] = Model("clusters", weights, np.zeros(count), limits).best(features)
    for each in set(own.tolist()) if unknown else ():
        limits[each - 1] = np.quantile(far[own == each], 1 - unknown)
    order = np.argsort(-np.bincount(own, minlength=count + 1)[1:], kind="stable")
    model = Model("clusters", weights[order], np.zeros(count), limits[order])
    names = [Category(at, f"cluster-{at:0{max(2, len(str(count)))}}") for at in range(1, count + 1)]
    facts = {"seed": seed, "unknown": unknown, "segments": len(features)}
    return keep(ledger, model, names, name, command, facts, parallel_map)


def keep(
    ledger: Ledger,
    model: Model | Words,
    categories: Sequence[Category],
    name: str,
    command: str,
    facts: Mapping[str, Any],
    parallel_map: ParallelMap,
) -> Categorised:
    """Write the table of a model. facts: of its making, `segments` among them."""
    cut = asdict(ledger.cut) if ledger.cut else None
    made = {each.name: getattr(model, each.name) for each in fields(model)}
    made |= {key: value.tolist() for key, value in made.items() if key in ARRAYS}
    parameters = {"categories": [asdict(each) for each in categories], **made, **facts, "cut": cut}
    shown = str(ledger.cut) if cut else None
    note = Note(command=command, columns=COLUMNS[model.kind], parameters=parameters, cut=shown)
    return _written(ledger, name, note, parallel_map)


def extend(ledger: Ledger, name: str, parallel_map: ParallelMap) -> Categorised:
    """Give categories to segments of windows that a table does not have, by its own model and at its cut.

    Raises ConfigError where there is none.
    """
    return _written(ledger, name, read_note(ledger, name)[0], parallel_map)


def cost_of(ledger: Ledger, name: str) -> tuple[float, float]:
    """Seconds of a core and bytes that an image takes in a table: values of its first window are made once more."""
    note, began = read_note(ledger, name)[0], process_time()
    model, _ = _opened(ledger, note)
    window = min(note.places, key=lambda each: (each.shard, each.window))
    rows = [{"shard": window.shard, **row} for row in model.values(ledger, window)]
    size, images = len(encode_values([rows], note.columns)), ledger.window_metadata(window).rows
    return (process_time() - began) / images, size / images


def _opened(ledger: Ledger, note: Note) -> tuple[Model | Words, int]:
    """The model of a note, and the segments that it was fitted to; the ledger is put at its cut."""
    found = note.parameters
    try:
        kind: type[Words | Model] = Words if COLUMNS[found["kind"]] is words.COLUMNS else Model
        given: Any = {each.name: found[each.name] for each in fields(kind) if each.name in found}
        model = kind(**given | {key: np.array(each, float) for key, each in given.items() if key in ARRAYS})
        segments, ledger.cut = int(found["segments"]), Cut(**found["cut"]) if found["cut"] else None
        if dict(note.columns) != COLUMNS[model.kind]:
            raise ValueError(f"its columns are {', '.join(note.columns)}")
        return model, segments
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"a derived table that this version's categories did not make: {error}") from error


def _written(ledger: Ledger, name: str, note: Note, parallel_map: ParallelMap) -> Categorised:
    model, segments = _opened(ledger, note)
    done, revision = write(ledger, name, note, partial(model.values, ledger), parallel_map)
    table, windows = f"{name}/{revision}", len(done.places) - len(note.places)
    return Categorised(table, windows, categories_of(note, table), segments, ledger.cut)
