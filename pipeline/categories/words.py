"""Categories named from words: segments of an image compared with texts, after one pass of a CLIP or SigLIP an image.

Letters: S segments, W words, C categories, D numbers of a vector, h w cells of patches.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from diffseg.types import IGNORE, Float, Int, UInt8
from pipeline.datasets.samples import checked
from pipeline.datasets.source_images import SourceImages
from pipeline.derived.joined import CATEGORY
from pipeline.errors import ConfigError, ShardChanged
from pipeline.evaluation.protocols import protocol_named, with_names
from pipeline.inputs.decode import UndecodableImage, decode
from pipeline.records import Category
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.table.label_map import decode_label_map
from pipeline.worker.device_errors import device_errors, loading_errors

if TYPE_CHECKING:
    from diffseg.models.joint.model import JointModel

CLIP = "clip"
CHOICES = ("first", "second", "third")  # the best categories of a segment, whether it is unknown or not
COLUMNS = {CATEGORY: "int32"} | {
    name: kind for each in CHOICES for name, kind in ((each, "int32"), (f"{each}_score", "float32"))
}
TEMPLATES = (  # of ViLD (Gu et al., ICLR 2022), those that open-vocabulary segmentation has taken since
    *("a photo of a {}.", "This is a photo of a {}", "There is a {} in the scene", "There is the {} in the scene"),
    *("a photo of a {} in the scene", "a photo of a small {}.", "a photo of a medium {}.", "a photo of a large {}."),
    *("This is a photo of a small {}.", "This is a photo of a medium {}.", "This is a photo of a large {}."),
    *("There is a small {} in the scene.", "There is a medium {} in the scene.", "There is a large {} in the scene."),
)
DIGITS = 8  # of a word's vector, as the note keeps it: float32 has no more
NEEDED = ("shard", "index", "key", "image_sha256", "label_map", "segments")
logger = logging.getLogger(__name__)
_loading = Lock()  # windows are computed in threads, which share one model


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """The category of the word nearest to a segment, none where it leads the next category by less than `margin`.

    model, sha256: what reads images. weights: of each word, its vector. owners: the category of each, from 0, rising.
    """

    kind: str
    model: str
    sha256: str
    weights: Float[np.ndarray, "W D"]
    owners: Int[np.ndarray, " W"]
    margin: float

    @property
    def facts(self) -> dict[str, Any]:
        """What `of` makes it from."""
        arrays = {"weights": self.weights.tolist(), "owners": self.owners.tolist()}
        return {"kind": self.kind, "model": self.model, "sha256": self.sha256, "margin": self.margin, **arrays}

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> "Words":
        """Made from `facts`. Raises KeyError, TypeError or ValueError for others."""
        weights, owners = np.array(facts["weights"], float), np.array(facts["owners"], int)
        return cls(CLIP, str(facts["model"]), str(facts["sha256"]), weights, owners, float(facts["margin"]))

    @classmethod
    def read(cls, words: Sequence[Sequence[str]], source: str, margin: float) -> "Words":
        """The words of categories, read by a model: a name, a folder, hub id or URL. Raises ConfigError."""
        from diffseg.models.joint.files import fetch_joint

        with loading_errors():
            files = fetch_joint(source)
            name = str(files.folder) if Path(source).is_dir() else files.name  # found from other folders too
            flat = [word for synonyms in words for word in synonyms]
            model = _opened(name, files.sha256)
            texts = model.words([template.format(word) for word in flat for template in TEMPLATES])
        means = texts.reshape(len(flat), len(TEMPLATES), -1).mean(1, dtype=np.float64)
        weights = (means / np.linalg.norm(means, axis=1, keepdims=True)).round(DIGITS)
        owners = np.repeat(np.arange(len(words)), [len(synonyms) for synonyms in words])
        return cls(CLIP, name, files.sha256, weights, owners, margin)

    def values(self, ledger: Ledger, window: WindowObject) -> Iterator[Mapping[str, Any]]:
        """Rows of the table for a window's segments; of an image that is not as it was labelled there are none."""
        left_out = 0
        for row, image in _images(ledger, window):
            if image is None:
                left_out += 1
                continue
            with device_errors():
                patches = _opened(self.model, self.sha256).patches(image)
            ids = [each["id"] for each in row["segments"]]
            vectors = pooled(patches, decode_label_map(row["label_map"]))[ids]
            yield from self.named(row["index"], ids, self.scores(vectors))
        if left_out:
            changed = "are not in their shard as they were when labelled: their segments stay unknown"
            logger.warning("%s/%s: %d images %s", ledger, window.name, left_out, changed)

    def scores(self, vectors: Float[np.ndarray, "S D"]) -> Float[np.ndarray, "S C"]:
        """The cosine of segments and categories, of several words the nearest one's."""
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors / np.where(lengths > 0, lengths, 1) @ self.weights.T
        starts = np.searchsorted(self.owners, np.arange(self.owners[-1] + 1))
        return np.maximum.reduceat(near, starts, axis=1)

    def named(self, index: int, ids: Sequence[int], scores: Float[np.ndarray, "S C"]) -> Iterator[Mapping[str, Any]]:
        """Rows of an image's segments by their scores."""
        best = np.argsort(-scores, axis=1, kind="stable")[:, : len(CHOICES)]
        found = np.take_along_axis(scores, best, axis=1)
        for id_, categories, values in zip(ids, best.tolist(), found.tolist(), strict=True):
            row = dict.fromkeys(COLUMNS) | {"index": index, "segment": id_}
            for choice, category, value in zip(CHOICES, categories, values, strict=False):  # there may be two words
                row |= {choice: category + 1, f"{choice}_score": value}
            clear = len(values) < 2 or values[0] - values[1] >= self.margin
            yield row | {CATEGORY: row["first"] if clear else None}


def words_of(lines: Sequence[str]) -> tuple[list[Category], list[list[str]]]:
    """Categories and the words of each: a name, synonyms after commas, and `thing` or `stuff` after a tab.

    Raises ConfigError for words that are there twice or empty, and for anything else after a tab.
    """
    parts = [line.partition("\t") for line in lines]
    words = [[word.strip() for word in text.split(",")] for text, _, _ in parts]
    flat = [word for synonyms in words for word in synonyms]
    if empty := [line for line, synonyms in zip(lines, words, strict=True) if not all(synonyms)]:
        raise ConfigError(f"--names: {empty[0]!r} has an empty word; a line is a name, or a name and synonyms: a, b, c")
    names = [f"{synonyms[0]}\t{kind}" for synonyms, (_, _, kind) in zip(words, parts, strict=True)]
    categories = with_names(protocol_named("regions", len(lines)), names)[1]
    if twice := [word for word in flat if flat.count(word) > 1]:
        raise ConfigError(f"--names: {twice[0]!r} is there twice; a word is of one category")
    return categories, words


def pooled(patches: Float[np.ndarray, "h w D"], label_map: Int[np.ndarray, "H W"]) -> Float[np.ndarray, "S D"]:
    """The mean over each segment's pixels of the patches that they lie in; 0 of an id that has none."""
    (height, width), (rows, columns) = label_map.shape, patches.shape[:2]
    row, column = (
        (2 * np.arange(side) + 1) * cells // (2 * side) for side, cells in ((height, rows), (width, columns))
    )
    keys = label_map.astype(np.int64) * rows * columns + row[:, None] * columns + column
    count = int(label_map.max()) + 1
    pixels = np.bincount(keys[label_map != IGNORE], minlength=count * rows * columns).reshape(count, -1)
    total = pixels @ patches.reshape(rows * columns, -1).astype(np.float64)
    return np.asarray(total / np.maximum(1, pixels.sum(1, keepdims=True)))


def _images(ledger: Ledger, window: WindowObject) -> Iterator[tuple[dict[str, Any], UInt8[np.ndarray, "H W 3"] | None]]:
    """Labelled rows of a window with their images; None where one is not what was labelled."""
    source = None
    for row in ledger.rows(NEEDED, windows=[window]):
        if row["label_map"] is None:
            continue
        source = source or SourceImages(ledger).through(window, row["index"])
        raw = next((each for each in source if each.index == row["index"]), None)
        try:
            raw = checked(raw, row, ledger)
            data = raw.members[raw.image or ""]
            same = hashlib.sha256(data).hexdigest() == row["image_sha256"]
            yield row, decode(data, ledger.run.reader) if same else None
        except (ShardChanged, UndecodableImage):
            yield row, None


def _opened(name: str, sha256: str) -> "JointModel":
    """The model, loaded once in a process. Raises ConfigError where another lies there than the one that read words."""
    with _loading, loading_errors():
        return _loaded(name, sha256)


@lru_cache(maxsize=1)
def _loaded(name: str, sha256: str) -> "JointModel":
    from diffseg.models.joint.files import fetch_joint
    from diffseg.models.joint.model import JointModel

    if (files := fetch_joint(name)).sha256 != sha256:
        raise ConfigError(f"{name}: its files are not those that the words were read with: make the table again")
    return JointModel.load(files)
