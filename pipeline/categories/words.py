"""Categories named from words: segments of an image compared with texts, after one pass of a model an image.

Letters: S segments, N boxes, W words, C categories, D numbers of a vector.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from scipy import ndimage

from diffseg.config import texts_of
from diffseg.cut import segment_vectors
from diffseg.draw import resize_labels
from diffseg.models.joint.files import CLIP, DETECTOR, fetch_joint
from diffseg.types import WORD, Float, Int, Int32
from pipeline.categories.segments import described
from pipeline.derived.joined import CATEGORY
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import protocol_named, with_names
from pipeline.gallery.preview import photos_of
from pipeline.records import CHANGED, Category
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.table.leaf_map import decode_leaf_map
from pipeline.worker.device_errors import device_errors, loading_errors

CHOICES = ("first", "second", "third")  # the best categories of a segment, whether it is unknown or not
COLUMNS = dict.fromkeys((CATEGORY, *CHOICES), "int32") | dict.fromkeys((f"{each}_score" for each in CHOICES), "float32")
# Of ViLD (Gu et al., ICLR 2022), those that open-vocabulary segmentation has taken since.
TEMPLATES = (resources.files("pipeline.categories") / "data" / "templates.txt").read_text("utf-8").splitlines()
CROSS = "cross-attention"
NEEDED = ("index", "image_sha256", "label_map", "segments")
logger = logging.getLogger(__name__)
_loading = Lock()  # windows are computed in threads, which share one model


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The category of the best word of a segment; none for a lead of less than `margin` or a score below `least`.

    model, sha256: what reads images. words: of each category. weights: vectors of words [W, D] where they have some.
    """

    kind: str
    model: str
    sha256: str
    margin: float
    words: Sequence[Sequence[str]]
    weights: Float[np.ndarray, "..."]
    least: float = -1.0

    @classmethod
    def read(
        cls, ledger: Ledger, kind: str, lines: Sequence[str], source: str | None, margin: float, least: float
    ) -> tuple[list[Category], "Words"]:
        """Categories, and their words read by a model; None: by the run's own, if it has. Raises ConfigError."""
        if not lines:
            raise ConfigError(f"{ledger}: no attention to words is kept: label with a UNet and --words FILE")
        try:
            words, run, weights = texts_of(lines), ledger.run, np.empty(0)
        except ValueError as error:
            raise ConfigError(f"words: {error}") from error
        named = ["\t".join((own[0], line.partition("\t")[2])) for own, line in zip(words, lines, strict=True)]
        known = with_names(protocol_named("regions", len(named)), named)[1]
        if source is None:  # the column has synonyms together
            words = [synonyms[:1] for synonyms in words]
            return known, cls(kind, run.model, run.weights_sha256, margin, words, weights, least)
        flat = tuple(chain.from_iterable(words))
        with loading_errors():
            files = fetch_joint(source, kind)
            name = str(files.folder) if Path(source).is_dir() else files.name  # found from other folders too
            model = _opened(kind, name, files.sha256)
            if kind == CLIP:
                texts = model.words([template.format(word) for word in flat for template in TEMPLATES])
                means = texts.reshape(len(flat), len(TEMPLATES), -1).mean(1, dtype=np.float64)
                weights = (means / np.linalg.norm(means, axis=1, keepdims=True)).round(8)  # float32 has no more
            else:
                model.read(flat)
        return known, cls(kind, name, files.sha256, margin, words, weights, least)

    def values(self, ledger: Ledger, window: WindowObject) -> Iterator[Mapping[str, Any]]:
        """Rows of the table for a window's segments; of an image that is not as it was labelled there are none."""
        if self.kind == CROSS:
            for found in described(ledger, window, of=partial(attended, len(self.words))):
                yield from self.named(*found)
            return
        rows = {row["index"]: row for row in ledger.rows(NEEDED, windows=[window]) if row["label_map"] is not None}
        left_out, sums = len(rows), {index: row["image_sha256"] for index, row in rows.items()}
        for index, image in photos_of(ledger, window.shard, sums, []):
            left_out -= 1
            with _loading, loading_errors():
                model = _opened(self.kind, self.model, self.sha256)
            with device_errors():
                scores = self._scores(model, image, decode_label_map(rows[index]["label_map"]))
            ids = [each["id"] for each in rows[index]["segments"]]
            yield from self.named(index, ids, scores[ids])
        if left_out:
            logger.warning("%s/%s: %d images: %s: segments stay unknown", ledger, window.name, left_out, CHANGED)

    def _scores(self, model: Any, image: np.ndarray, label_map: np.ndarray) -> Float[np.ndarray, "S W"]:
        if self.kind == DETECTOR:
            found = model.boxes(image, tuple(chain.from_iterable(self.words)))
            return np.hstack([votes(label_map, *each) for each in found])
        patches = model.patches(image)
        cells = np.arange(patches.shape[0] * patches.shape[1], dtype=np.int32).reshape(patches.shape[:2])
        vectors = segment_vectors(resize_labels(cells, label_map.shape), patches.reshape(cells.size, -1), label_map)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1) @ self.weights.T)

    def named(self, index: int, ids: Sequence[int], near: Float[np.ndarray, "S W"]) -> Iterator[Mapping[str, Any]]:
        """Rows of an image's segments, by the score of each category's best word."""
        firsts = np.cumsum([0, *map(len, self.words)])[:-1]
        scores = np.maximum.reduceat(near, firsts, axis=1)
        best = np.argsort(-scores, axis=1, kind="stable")[:, : len(CHOICES)]
        found = np.take_along_axis(scores, best, axis=1)
        for id_, categories, values in zip(ids, best.tolist(), found.tolist(), strict=True):
            row = dict.fromkeys(COLUMNS) | {"index": index, "segment": id_}
            for choice, category, value in zip(CHOICES, categories, values, strict=False):  # there may be two words
                row |= {choice: category + 1, f"{choice}_score": value}
            clear = len(values) < 2 or values[0] - values[1] >= self.margin
            yield row | {CATEGORY: row["first"] if clear and values[0] >= self.least else None}


def votes(
    label_map: Int[np.ndarray, "H W"], boxes: Float[np.ndarray, "N 4"], scores: Float[np.ndarray, "N W"]
) -> Float[np.ndarray, "S W"]:
    """The vote of the best box for each word on each segment, in [0, 1]; 0 where no box has a pixel of the segment.

    A box votes by its score for the word, times the geometric mean of two shares: of the segment that lies in the box,
    and of the box that the segment fills, so that a box about the whole image names no small thing in it. A pixel lies
    in a box with its centre. boxes: left, top, right, bottom, as shares of the image.
    """
    sides = np.array(label_map.shape[::-1] * 2)
    edges = np.ceil(np.clip(boxes, 0, 1).astype(np.float64) * sides - 0.5).astype(int)
    areas = np.prod(np.maximum(edges[:, 2:] - edges[:, :2], 0), axis=1)
    found = np.zeros((int(label_map.max(initial=-1)) + 1, scores.shape[1]))
    for id_, window in enumerate(ndimage.find_objects(label_map + 1)):
        if window is None:
            continue
        inside = label_map[window] == id_
        counts = np.pad(inside.cumsum(0).cumsum(1), ((1, 0), (1, 0)))  # of pixels above and left of each corner
        start, most = np.array([window[1].start, window[0].start] * 2), np.array(inside.shape[::-1] * 2)
        left, top, right, bottom = np.clip(edges - start, 0, most).T
        held = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
        near = (held > 0) & (areas > 0)
        if near.any():
            shares = held[near] / np.sqrt(inside.sum() * areas[near].astype(np.float64))
            found[id_] = (shares[:, None] * scores[near]).max(axis=0)
    return found


def attended(lines: int, row: Mapping[str, Any], label_map: Int32[np.ndarray, "H W"]) -> Float[np.ndarray, "S C"]:
    """The mean over segments' pixels of what their leaves keep of a run's lines: 0 for those beyond the best three."""
    best = np.frombuffer(row["words"], WORD).reshape(-1, 3)
    scores = np.zeros((len(best), lines))
    np.add.at(scores, (np.arange(len(best))[:, None], best["line"]), best["score"])
    leaf_map = label_map if row["leaf_map"] is None else decode_leaf_map(row["leaf_map"])
    return segment_vectors(leaf_map, scores, label_map)


@lru_cache(maxsize=1)
def _opened(kind: str, name: str, sha256: str) -> Any:
    """The model, loaded once in a process. Raises ConfigError where another lies there than the one that read words."""
    from diffseg.models.joint.model import Detector, JointModel

    if (files := fetch_joint(name, kind)).sha256 != sha256:
        raise ConfigError(f"{name}: its files are not those that the words were read with: make the table again")
    return (JointModel if kind == CLIP else Detector).load(files)
