"""Categories named from words: segments of an image compared with texts, after one pass of a model an image.

Letters: S segments, W words, C categories, D numbers of a vector, h w cells of patches.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from diffseg.draw import resize_labels
from diffseg.models.joint.files import CLIP, fetch_joint
from diffseg.types import IGNORE, Float, Int, UInt8
from pipeline.categories.votes import votes
from pipeline.datasets.samples import checked
from pipeline.datasets.source_images import SourceImages
from pipeline.derived.joined import CATEGORY
from pipeline.errors import ConfigError, ShardChanged
from pipeline.evaluation.protocols import protocol_named, with_names
from pipeline.inputs.decode import UndecodableImage, decode
from pipeline.records import CHANGED, Category
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.worker.device_errors import device_errors, loading_errors

CHOICES = ("first", "second", "third")  # the best categories of a segment, whether it is unknown or not
COLUMNS = dict.fromkeys((CATEGORY, *CHOICES), "int32") | dict.fromkeys((f"{each}_score" for each in CHOICES), "float32")
TEMPLATES = (  # of ViLD (Gu et al., ICLR 2022), those that open-vocabulary segmentation has taken since
    *("a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene", "There is the {} in the scene"),
    *("a photo of a {} in the scene", "a photo of a small {}.", "a photo of a medium {}.", "a photo of a large {}."),
    *("This is a photo of a small {}.", "This is a photo of a medium {}.", "This is a photo of a large {}."),
    *("There is a small {} in the scene.", "There is a medium {} in the scene.", "There is a large {} in the scene."),
)
NEEDED = ("shard", "index", "key", "image_sha256", "label_map", "segments")
logger = logging.getLogger(__name__)
_loading = Lock()  # windows are computed in threads, which share one model


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The category of the best word of a segment, none where it leads the next category by less than `margin` or its
    score is below `least`.

    model, sha256: what reads images. words: of each category, a name and synonyms. weights: the vectors of all words
    [W, D] where they are compared with those of segments.
    """

    kind: str
    model: str
    sha256: str
    margin: float
    words: Sequence[Sequence[str]]
    weights: Float[np.ndarray, "..."]
    least: float = -1.0

    @classmethod
    def read(cls, kind: str, words: Sequence[Sequence[str]], source: str, margin: float, least: float) -> "Words":
        """The words of categories, read by a model: a hub id, folder or URL. Raises ConfigError."""
        flat, weights = tuple(word for synonyms in words for word in synonyms), np.empty((0, 0))
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
        return cls(kind, name, files.sha256, margin, words, weights, least)

    def values(self, ledger: Ledger, window: WindowObject) -> Iterator[Mapping[str, Any]]:
        """Rows of the table for a window's segments; of an image that is not as it was labelled there are none."""
        left_out = 0
        for row, image in _images(ledger, window):
            if image is None:
                left_out += 1
                continue
            with _loading, loading_errors():
                model = _opened(self.kind, self.model, self.sha256)
            ids, label_map = [each["id"] for each in row["segments"]], decode_label_map(row["label_map"])
            with device_errors():
                scores = (
                    self._cosines(model, image, label_map)
                    if self.kind == CLIP
                    else self._votes(model, image, label_map)
                )
            yield from self.named(row["index"], ids, scores[ids])
        if left_out:
            logger.warning("%s/%s: %d images: %s: segments stay unknown", ledger, window.name, left_out, CHANGED)

    def _cosines(self, model: Any, image: np.ndarray, label_map: np.ndarray) -> Float[np.ndarray, "S W"]:
        vectors = pooled(model.patches(image), label_map)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors / np.where(lengths > 0, lengths, 1) @ self.weights.T)

    def _votes(self, model: Any, image: np.ndarray, label_map: np.ndarray) -> Float[np.ndarray, "S W"]:
        flat = tuple(word for synonyms in self.words for word in synonyms)
        return np.hstack([votes(label_map, *found) for found in model.boxes(image, flat)])

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


def words_of(lines: Sequence[str]) -> tuple[list[Category], list[list[str]]]:
    """Categories and the words of each: a name, synonyms after commas, and `thing` or `stuff` after a tab.

    Raises ConfigError for words that are there twice or empty, and for anything else after a tab.
    """
    parts = [line.partition("\t") for line in lines]
    words = [[word.strip() for word in text.split(",")] for text, _, _ in parts]
    if not all(map(all, words)):
        raise ConfigError("--names: there is an empty word; a line is a name, or a name and synonyms: a, b, c")
    flat = [f"{word}\t{kind}" for synonyms, (_, _, kind) in zip(words, parts, strict=True) for word in synonyms]
    known = {each.name: each for each in with_names(protocol_named("regions", len(flat)), flat)[1]}
    return [replace(known[first], id=at) for at, (first, *_) in enumerate(words, 1)], words


def pooled(patches: Float[np.ndarray, "h w D"], label_map: Int[np.ndarray, "H W"]) -> Float[np.ndarray, "S D"]:
    """The mean over each segment's pixels of the patches that they lie in; 0 of an id that has none."""
    cells, count = patches.shape[0] * patches.shape[1], int(label_map.max()) + 1
    keys = label_map * cells + resize_labels(np.arange(cells).reshape(patches.shape[:2]), label_map.shape)
    pixels = np.bincount(keys[label_map != IGNORE], minlength=count * cells).reshape(count, cells)
    shares = pixels / np.maximum(1, pixels.sum(1, keepdims=True))
    return np.asarray(shares @ patches.reshape(cells, -1))


def _images(ledger: Ledger, window: WindowObject) -> Iterator[tuple[dict[str, Any], UInt8[np.ndarray, "H W 3"] | None]]:
    """Labelled rows of a window with their images; None where one is not what was labelled."""
    source = None
    for row in (row for row in ledger.rows(NEEDED, windows=[window]) if row["label_map"] is not None):
        source = source or SourceImages(ledger).through(window, row["index"])
        raw = next((each for each in source if each.index == row["index"]), None)
        try:
            raw = checked(raw, row, ledger)
            other = raw.is_other_than(row["image_sha256"])
            yield row, None if other else decode(raw.members[raw.image or ""], ledger.run.reader)
        except (ShardChanged, UndecodableImage):
            yield row, None


@lru_cache(maxsize=1)
def _opened(kind: str, name: str, sha256: str) -> Any:
    """The model, loaded once in a process. Raises ConfigError where another lies there than the one that read words."""
    from diffseg.models.joint.detector import Detector
    from diffseg.models.joint.model import JointModel

    if (files := fetch_joint(name, kind)).sha256 != sha256:
        raise ConfigError(f"{name}: its files are not those that the words were read with: make the table again")
    return (JointModel if kind == CLIP else Detector).load(files)
