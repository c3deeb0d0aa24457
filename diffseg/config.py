"""What decides the labels. No torch and no third party here: every command reads this file.

`SegmentConfig` is what a user asks for; `resolve` fills in what the model decides and gives a `ResolvedConfig`;
`fingerprint` is a hash of that.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

# by mode; raised only when this code gives other labels for equal configuration and weights
LABELS_VERSION: Mapping[str, int] = {"paper": 1, "fast": 1, "quality": 1}
VERSIONS = range(1, 1000)  # tried for a fingerprint; it may be of a newer version than this code's

# Fields of 0.1.0. Every later field says in its metadata which value labels as 0.1.0 did: {AS_BEFORE: value}
FIRST_FIELDS = {
    *("mode", "thresholds", "anchors_per_side", "refine", "timestep", "image_size", "output_size", "min_area"),
    *("split_components", "dtype", "compile"),
}
AS_BEFORE = "as before"
LEAVES = 64  # of a tree, unless a user says otherwise
ANCHORS = 16  # a side, as published

MOST = {  # of numbers whose cost grows with them; memory grows as the fourth power of image_size
    "anchors_per_side": 128,
    "image_size": 4_096,
    "output_size": 65_535,
}
MOST_ITERATIONS = 64
MOST_CLUSTERS = 256
MOST_LEAVES = 256
MOST_WORDS = 10_000  # with synonyms: their maps are 160 MB an image of Stable Diffusion
OBJECTS = 63  # of all crops of an image, at most: seven of each
QUALITY_TIMESTEP = 50  # of UNets, published for segments by a normalised cut (DiffCut, arXiv 2406.02842)

Mode = Literal["paper", "fast", "quality"]
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDefaults:
    """A model's own values for what a user leaves open."""

    name: str = "this model"
    thresholds: tuple[float, ...]  # symmetric KL in nats, one an iteration
    cut: float | None  # symmetric KL in nats: the height at which a tree is cut into segments
    timestep: int | None  # diffusion time of the one pass, 0..999; None: the model knows no time
    image_size: int  # pixels: side of the square that has the area of the model's input
    unit: int = 64  # pixels: the sides of the model's input are multiples of it
    dtype: Dtype  # of the model's weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentConfig:
    """Everything that changes labels, as a user asks for it. None: the model decides, see `resolve`.

    Raises ValueError on construction for values that no model could use.
    """

    # "paper": as published, from the centre square; "fast": from the whole image, cleaned up; "quality": so too, but
    # the cells are split by the spectrum of their features, not merged by their attention
    mode: Mode = "fast"
    thresholds: tuple[float, ...] | None = None  # symmetric KL in nats, one an iteration
    anchors_per_side: int = ANCHORS
    refine: bool = False  # K-means on the attention maps, started from the proposals
    timestep: int | None = None  # diffusion time of the one UNet pass, 0..999
    image_size: int | None = None  # pixels; "fast" keeps the aspect and aims for this squared in area
    output_size: int | Literal["source"] = 1024  # pixels, the longer side of a label map at most
    min_area: float = 0.001  # share of the image; "fast" gives smaller segments and holes to their surroundings
    split_components: bool = False  # "fast": every connected region a segment of its own
    dtype: Dtype | None = None
    compile: bool = False
    # labels move to where the picture changes; None: unless it is "paper"
    edges: bool | None = field(default=None, metadata={AS_BEFORE: False})
    tree: bool | None = field(default=None, metadata={AS_BEFORE: False})  # a hierarchy of segments, cut at `cut`
    leaves: int = field(default=LEAVES, metadata={AS_BEFORE: LEAVES})  # of the tree, at most
    cut: float | None = field(default=None, metadata={AS_BEFORE: None})  # height in nats
    vectors: bool = field(default=False, metadata={AS_BEFORE: False})  # one a leaf
    ridges: bool = field(default=False, metadata={AS_BEFORE: False})  # of the borders of leaves
    crop_layers: int = field(default=0, metadata={AS_BEFORE: 0})  # 1: small objects of crops are leaves too
    clusters: int | None = field(default=None, metadata={AS_BEFORE: None})  # "quality": segments; None: an image's own
    words: tuple[str, ...] | None = field(
        default=None, metadata={AS_BEFORE: None}
    )  # whose attention is kept: `texts_of`

    def __post_init__(self) -> None:
        if self.mode not in LABELS_VERSION:
            raise ValueError(f"mode must be 'paper', 'fast' or 'quality', got {self.mode!r}")
        if self.clusters is not None and (self.mode != "quality" or not 2 <= self.clusters <= MOST_CLUSTERS):
            raise ValueError(f"clusters are 2..{MOST_CLUSTERS} segments of mode 'quality', got {self.clusters}")
        if self.words is not None:
            texts_of(self.words)
        if self.mode == "quality" and self.refine:
            raise ValueError("refine belongs to merging, which mode 'quality' does not do")
        if self.thresholds is not None:
            if len(self.thresholds) == 0:
                raise ValueError("thresholds must name at least one iteration, got ()")
            if len(self.thresholds) > MOST_ITERATIONS:
                raise ValueError(f"thresholds name at most {MOST_ITERATIONS} iterations, got {len(self.thresholds)}")
            if not all(math.isfinite(tau) and tau > 0 for tau in self.thresholds):
                raise ValueError(f"thresholds must be positive numbers of nats, got {self.thresholds}")
        if self.anchors_per_side < 1:
            raise ValueError(f"anchors_per_side must be at least 1, got {self.anchors_per_side}")
        if self.timestep is not None and not 0 <= self.timestep < 1000:
            raise ValueError(f"timestep must lie in 0..999, got {self.timestep}")
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be a positive number of pixels, got {self.image_size}")
        if self.output_size != "source" and (isinstance(self.output_size, str) or self.output_size < 1):
            raise ValueError(f"output_size must be a number of pixels or 'source', got {self.output_size!r}")
        if not 0 <= self.min_area < 1:
            raise ValueError(f"min_area is a share of the image in [0, 1), got {self.min_area}")
        for name, most in MOST.items():
            if isinstance(value := getattr(self, name), int) and value > most:
                raise ValueError(f"{name} must be at most {most:,}, got {value}")
        if self.dtype not in (None, "float32", "bfloat16", "float16"):
            raise ValueError(f"dtype must be float32, bfloat16 or float16, got {self.dtype!r}")
        if self.edges and self.mode == "paper":
            raise ValueError("edges are not of mode 'paper', which labels as published: leave one of them out")
        if self.crop_layers not in (0, 1):
            raise ValueError(f"crop_layers must be 0 or 1, got {self.crop_layers}")
        most = MOST_LEAVES - OBJECTS * self.crop_layers
        if not 2 <= self.leaves <= most:
            raise ValueError(f"leaves must lie in 2..{most}{' with crops' * self.crop_layers}, got {self.leaves}")
        if self.cut is not None and not (math.isfinite(self.cut) and self.cut >= 0):
            raise ValueError(f"cut is a height in nats, at least 0, got {self.cut}")

    def resolve(self, model: ModelDefaults) -> "ResolvedConfig":
        """Fill in the model's values for what is None.

        `paper` mode runs in float32, as published, unless a dtype is named. There is no tree where greedy merging is
        asked for by one of its own settings.
        Raises ValueError for an image_size that the model cannot take, for a timestep where it has none, and for
        settings of a tree where there is none, and for words where the model attends to none.
        """
        if self.timestep is not None and model.timestep is None:
            raise ValueError(f"{model.name} has no timestep, got {self.timestep}")
        if self.words and model.timestep is None:
            raise ValueError(f"{model.name} is no UNet, whose attention to words could be kept: leave out words")
        tree = self._has_tree()
        if self.mode == "quality" and self.thresholds is not None:
            raise ValueError("thresholds belong to merging: mode 'quality' takes clusters")
        own_time = QUALITY_TIMESTEP if self.mode == "quality" and model.timestep is not None else model.timestep
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        return ResolvedConfig(
            **{
                **asked,
                "thresholds": self.thresholds or model.thresholds,
                "timestep": own_time if self.timestep is None else self.timestep,
                "image_size": self.image_size or model.image_size,
                "unit": model.unit,
                "dtype": self.dtype or ("float32" if self.mode == "paper" else model.dtype),
                "edges": self.mode != "paper" if self.edges is None else self.edges,
                "tree": tree,
                "cut": (model.cut if self.cut is None else self.cut) if tree else None,
            }
        )

    def _has_tree(self) -> bool:
        settings = {"tree": self.tree, "cut": self.cut is not None, "leaves": self.leaves != LEAVES}
        settings |= {"vectors": self.vectors, "ridges": self.ridges}
        settings |= {"crop_layers": self.crop_layers > 0}
        asked = ", ".join(name for name, given in settings.items() if given)
        without = {
            f"mode {self.mode!r}": self.mode != "fast",
            "thresholds": self.thresholds is not None,
            "refine": self.refine,
            "anchors_per_side": self.anchors_per_side != ANCHORS,
            "tree = false": self.tree is False,
        }
        reason = next((name for name, given in without.items() if given), None)
        if reason and asked:
            raise ValueError(
                f"{asked}: of a tree, but {reason} means none; give one of them (--cut: a tree's threshold)"
            )
        return reason is None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig(SegmentConfig):
    """A configuration in which nothing is left open: what a run records and every step of the method reads."""

    thresholds: tuple[float, ...]
    timestep: int | None
    image_size: int
    dtype: Dtype
    edges: bool = field(default=False, metadata={AS_BEFORE: False})
    tree: bool = field(default=False, metadata={AS_BEFORE: False})
    unit: int = field(default=64, metadata={AS_BEFORE: 64})  # pixels, see `ModelDefaults`; 64 is that of UNets

    def __post_init__(self) -> None:
        SegmentConfig.__post_init__(self)  # super() knows no class with slots
        if self.unit < 1 or self.image_size % self.unit:
            raise ValueError(f"image_size must be a multiple of {self.unit} pixels, got {self.image_size}")

    def resolve(self, model: ModelDefaults) -> "ResolvedConfig":
        """Return this configuration, whatever the model."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """The fields that are fingerprinted and recorded.

        A field that 0.1.0 did not have is left out while its value is the one that labels as 0.1.0 did, so that runs
        begun without it keep their fingerprint.
        """
        later = self.as_before()
        return {k: v for k, v in asdict(self).items() if k not in later or v != later[k]}

    @classmethod
    def as_before(cls) -> dict[str, Any]:
        """The fields that 0.1.0 did not have, each with the value that labels as 0.1.0 did."""
        return {each.name: each.metadata[AS_BEFORE] for each in fields(cls) if each.name not in FIRST_FIELDS}


def texts_of(lines: Sequence[str]) -> list[list[str]]:
    """The texts of each category's line: a name, synonyms after commas; after a tab may stand `thing` or `stuff`.

    Raises ValueError for anything else, for no word, an empty one, one that is there twice, and too many.
    """
    parts = [line.partition("\t") for line in lines]
    texts = [[word.strip() for word in text.split(",")] for text, _, _ in parts]
    words = Counter(word for synonyms in texts for word in synonyms)
    if not words or "" in words:
        raise ValueError("there is an empty word; a line is a name, or a name and synonyms: a, b, c")
    if odd := [kind for _, _, kind in parts if kind.strip() not in ("", "thing", "stuff")]:
        raise ValueError(f"after a tab stands thing or stuff, not {odd[0]!r}")
    [(word, times)] = words.most_common(1)
    if times > 1 or len(words) > MOST_WORDS:
        raise ValueError(f"{word!r} is there twice" if times > 1 else f"there are more than {MOST_WORDS:,} words")
    return texts


def fingerprint(config: ResolvedConfig, weights_sha256: str) -> str:
    """Two runs share a fingerprint exactly when they may share an output folder.

    weights_sha256: of the model's files.
    """
    return _hash(config.to_dict(), weights_sha256, LABELS_VERSION[config.mode])


def labels_version_of(print_: str, segment: Mapping[str, Any], weights_sha256: str) -> int | None:
    """The LABELS_VERSION that a fingerprint was made with; None where it is not of this configuration and weights.

    segment: the configuration as it was recorded, see `ResolvedConfig.to_dict`.
    """
    return next((version for version in VERSIONS if _hash(segment, weights_sha256, version) == print_), None)


def _hash(segment: Mapping[str, Any], weights_sha256: str, version: int) -> str:
    canonical = json.dumps([dict(segment), weights_sha256, version], sort_keys=True)
    return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
