"""DiffSeg from beginning to end: every step of the method, in the order of the paper.

`DiffSeg` takes images and gives label maps; `segment_attention` takes attention maps of any other model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, Protocol, overload, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffseg.config import ModelDefaults, ResolvedConfig, SegmentConfig
from diffseg.hierarchy.cell_edges import cell_edges
from diffseg.hierarchy.crops import Objects, carve, objects_of
from diffseg.hierarchy.leaves import POOL, Leaves, grow
from diffseg.hierarchy.results import cut_trees, with_words
from diffseg.hierarchy.vectors import vectors_of
from diffseg.labels.assign import assign, by_size, enlarge, paste
from diffseg.labels.edges import planes, refine_edges
from diffseg.labels.results import painted_ids, segmentations, tidy
from diffseg.labels.rle import parted
from diffseg.labels.score import score
from diffseg.method.aggregate import Attention, aggregate
from diffseg.method.feed import Feed, Prepared, prepare
from diffseg.method.geometry import PLACES, Frame
from diffseg.method.merge import Proposals, merge
from diffseg.method.normalised_cut import normalised_cut
from diffseg.method.refine import refine
from diffseg.method.tf32 import tensor_cores
from diffseg.models.attention import AttentionMaps
from diffseg.ridges import ridges_of
from diffseg.types import AttentionError, Float, Int, Segmentation, UInt8, Vectors

# The published values for COCO-Stuff: defaults of `segment_attention`, which knows no model
PUBLISHED = ModelDefaults(thresholds=(1.1, 1.1, 1.1), cut=1.1, timestep=300, image_size=512, dtype="float32")
_Pass = tuple[list[int], AttentionMaps, torch.cuda.Event | None]  # positions of its images, maps, when they are there
FLOOR = 1e-12  # least probability in `fast` mode: a zero would put a map infinitely far from every other


@runtime_checkable
class Model(Protocol):
    """What the method needs of a model: a `Backend` of `diffseg.models`, or any other source of attention."""

    @property
    def config(self) -> ResolvedConfig:
        """The configuration the model was loaded for."""

    @property
    def device(self) -> torch.device:
        """The device of attention and labels."""

    def attend(self, pixels: Float[Tensor, "B 3 H W"], *, features: bool = False) -> AttentionMaps:
        """One forward pass; pixels in [-1, 1]. features: give the cells' vectors too, and attention to words."""

    def batch_size(self) -> int:
        """Images that fit into one forward pass."""


class DiffSeg:
    """Segments images with a model that was never trained to.

    batch_size: images a forward pass; None: as many as fit. It changes speed and memory only.
    """

    def __init__(self, backend: Model, batch_size: int | None = None) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.backend = backend
        self.batch_size = batch_size or backend.batch_size()
        self._feed = Feed(backend.device)
        self._launched: list[tuple[Sequence[Prepared], list[_Pass]]] = []

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        config: SegmentConfig | None = None,
        *,
        device: torch.device | str | None = None,
        batch_size: int | None = None,
    ) -> "DiffSeg":
        """Load a model by short name ("sd1.5"), hub id, folder or fsspec URL.

        Raises ValueError where there is no usable model of that name.
        """
        from diffseg.models.load import load

        return cls(load(model, config, device), batch_size)

    @property
    def config(self) -> ResolvedConfig:
        """The configuration that images are labelled with."""
        return self.backend.config

    def segment(self, images: Sequence[Image.Image | np.ndarray | Prepared]) -> list[Segmentation]:
        """Label images of any sizes: PIL images, uint8 [H, W, 3] or prepared. Results come in the order of the images.

        Raises ValueError for anything else, AttentionError naming the images whose attention is no distribution; the
        others can be segmented without them.
        """
        [results] = self._label(images, [self.config])
        return results

    def compare(
        self, images: Sequence[Image.Image | np.ndarray], thresholds: Sequence[tuple[float, ...]]
    ) -> list[list[Segmentation]]:
        """Merge greedily at several thresholds after one pass of the model: a list of results for each of them.

        Raises what `segment` does.
        """
        plain = replace(self.config, tree=False, vectors=False, ridges=False, cut=None, crop_layers=0, words=None)
        return self._label(images, [replace(plain, thresholds=each) for each in thresholds])

    def prepare(self, image: Image.Image | np.ndarray) -> Prepared:
        """All of an image's work that needs no device, which any thread may do ahead of `segment`.

        Raises ValueError for what is no image.
        """
        return prepare(as_pixels(image), self.config)

    def launch(self, images: Sequence[Prepared]) -> bool:
        """Start the model's passes over images that `segment` is given soon, while the host does other things.

        False on a processor, where nothing starts. What was launched before the last batch is forgotten.
        """
        if self.backend.device.type != "cuda":
            return False
        passes = list(self._passes(images, self._wants_features(self.config)))
        self._launched = [*self._launched[-1:], (images, passes)]
        return True

    def _label(
        self, images: Sequence[Image.Image | np.ndarray | Prepared], configs: Sequence[ResolvedConfig]
    ) -> list[list[Segmentation]]:
        ready = [each if isinstance(each, Prepared) else self.prepare(each) for each in images]
        results: list[dict[int, Segmentation]] = [{} for _ in configs]
        refused: list[int] = []
        launched = next((each for each in self._launched if [*map(id, each[0])] == [*map(id, images)]), None)
        if launched:
            self._launched.remove(launched)
        wanted = any(map(self._wants_features, configs))
        for batch, maps, mark in launched[1] if launched else self._passes(ready, wanted):
            with self._feed.beside(mark):
                for positions, part in _parts(maps):
                    of_part = [batch[i] for i in positions]
                    planned = [ready[i].frame for i in of_part]
                    shown = [picture for i in of_part if (picture := ready[i].picture) is not None]
                    try:
                        for found, config in zip(results, configs, strict=True):
                            objects = self._objects([ready[i] for i in of_part], config)
                            labelled = label(part, planned, config, shown, objects)
                            if config.words and part.words is not None:
                                labelled = with_words(labelled, part.words, config.words, planned)
                            found.update(zip(of_part, labelled, strict=True))
                    except AttentionError as error:
                        refused += [of_part[i] for i in error.images]
        if refused:
            refused.sort()
            raise AttentionError(f"the model's attention is no distribution for images {refused}", tuple(refused))
        return [[found[i] for i in range(len(images))] for found in results]

    @staticmethod
    def _wants_features(config: ResolvedConfig) -> bool:
        return bool(config.vectors or config.words) or config.mode == "quality"

    def _passes(self, images: Sequence[Prepared], features: bool) -> Iterator[_Pass]:
        for batch in self._batches(images):
            given = self._feed.upload([images[i].pixels for i in batch], self.batch_size)
            maps = self.backend.attend(given, features=True) if features else self.backend.attend(given)
            yield batch, _slice(maps, slice(len(batch))), self._feed.mark()

    def _objects(self, images: Sequence[Prepared], config: ResolvedConfig) -> list[Objects]:
        """The small objects that crops of a batch show; one pass takes the crops of all images at one place."""
        found = []
        for number, place in enumerate(PLACES if config.crop_layers else ()):
            given = self._feed.upload([each.crops[number] for each in images], self.batch_size)
            maps = _slice(self.backend.attend(given), slice(len(images)))
            found.append(objects_of(cluster(maps, config, pool=1), maps.grid, place))
        return found

    def _batches(self, images: Sequence[Prepared]) -> Iterator[list[int]]:
        """Indices of images that share a forward pass: those of one input size, `batch_size` of them at most."""
        of_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            of_size.setdefault(image.shape, []).append(i)
        for indices in of_size.values():
            for first in range(0, len(indices), self.batch_size):
                yield indices[first : first + self.batch_size]


@torch.no_grad()
def label(
    maps: AttentionMaps,
    frames: Sequence[Frame],
    config: ResolvedConfig,
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]] = (),
    objects: Sequence[Objects] = (),
) -> list[Segmentation]:
    """Turn the attention of a batch into segments, each image in its own frame.

    pictures: the images at the size of their label maps, wanted where the configuration has edges; by them trees tell
    what borders show. objects: of their crops, an item for each place.
    Raises AttentionError naming the images whose attention is no distribution.
    """
    colours = planes(pictures, maps.levels[0].device) if len(pictures) else None
    if config.tree:
        return _label_by_tree(maps, [each.output for each in frames], config, colours, objects)
    proposals = propose(maps, config)
    grid = (maps.features_grid if config.mode == "quality" else None) or maps.grid
    label_maps = _in_frames(proposals, grid, frames)
    labels = max(1, *proposals.counts)
    if config.edges and colours is not None:
        label_maps = refine_edges(label_maps, colours, labels)
    rle, segments = tidy(label_maps, config, labels)
    scores = score(segments, rle, proposals, grid, [each.window for each in frames])
    return segmentations(rle, segments, scores)


def _label_by_tree(
    maps: AttentionMaps,
    sizes: Sequence[tuple[int, int]],
    config: ResolvedConfig,
    colours: UInt8[Tensor, "3 T"] | None = None,
    objects: Sequence[Objects] = (),
) -> list[Segmentation]:
    if config.vectors and (maps.features is None or maps.features_grid is None):
        raise ValueError("the model gives no features to make vectors of: do not ask for them (--vectors)")
    leaves = cluster(maps, config)
    cells = leaves.cells.unflatten(-1, maps.grid)
    label_maps: list[Tensor] = []
    for part, size in by_size(sizes, cells.device):
        label_maps += enlarge(cells[part], size).unbind()
    if objects:
        label_maps, leaves = carve(label_maps, leaves, objects)
    labels = leaves.merges.into.shape[1]
    if config.edges and colours is not None:
        painted = label_maps
        label_maps = refine_edges(painted, colours, labels)
        if objects:  # few of the labels that there may be are painted, and mixtures can resemble another one
            label_maps = [_among(*each, labels) for each in zip(label_maps, painted, strict=True)]
    rle, found = tidy(label_maps, replace(config, split_components=False), labels)
    beside: list[Tensor] = []
    if config.ridges:
        beside += cell_edges(maps.levels[0], maps.grid, FLOOR)
    if maps.features is not None and maps.features_grid is not None and config.vectors:
        beside += vectors_of(maps.features, maps.features_grid, rle, found)
    results, own, others = cut_trees(rle, found, leaves, config, colours, beside)
    if config.ridges:
        across, down, *others = others
        results = [_with_ridges(*each) for each in zip(results, across, down, strict=True)]
    if config.vectors:
        values, scales = others
        vectors = [Vectors(values[part], scales[part]) for part in own]
        results = [replace(result, vectors=each) for result, each in zip(results, vectors, strict=True)]
    return results


def _with_ridges(result: Segmentation, across: np.ndarray, down: np.ndarray) -> Segmentation:
    assert result.leaf_map is not None
    return replace(result, ridges=ridges_of(result.leaf_map, across, down))


@overload
def segment_attention(
    maps: Sequence[Tensor | np.ndarray],
    config: SegmentConfig,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    return_trace: Literal[False] = False,
) -> Tensor: ...


@overload
def segment_attention(
    maps: Sequence[Tensor | np.ndarray],
    config: SegmentConfig,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    return_trace: Literal[True],
) -> tuple[Tensor, list[int] | list[list[int]]]: ...


@torch.no_grad()
def segment_attention(
    maps: Sequence[Tensor | np.ndarray],
    config: SegmentConfig,
    size: tuple[int, int],
    *,
    grid: tuple[int, int] | None = None,
    return_trace: bool = False,
) -> Tensor | tuple[Tensor, list[int] | list[list[int]]]:
    """Apply the method to attention from any model: returns a label map int32 [H, W] with ids 0..n-1.

    maps: for each resolution the mean over heads and layers, [n, n] with rows summing to one, in any order; for a
    batch [B, n, n], which gives [B, H, W].
    config: thresholds default to the published ones. There is a tree only where it is asked for; edges are left as
    they are and no crops looked at, for want of a picture.
    size: height and width of the result, which the grid fills whole.
    grid: height and width in cells of the finest level where it is not square.
    return_trace: return the number of proposals after each iteration too.

    Raises ValueError where maps do not fit each other or the grid, AttentionError (a ValueError) naming the images
    whose rows are no distribution.
    """
    levels, alone = _levels(maps)
    given = AttentionMaps(levels, grid or _square(levels[0]))
    if config.tree is None and config.cut is None:
        config = replace(config, tree=False)
    resolved = replace(config, vectors=False, ridges=False, edges=False, crop_layers=0, words=None).resolve(PUBLISHED)
    if resolved.tree and return_trace:
        raise ValueError("return_trace counts the proposals of greedy merging: a tree has none")
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is height and width in pixels, both at least 1, got {size}")
    painted: list[Tensor] = []
    trace: list[list[int]] = []
    refused: list[int] = []
    for positions, part in _parts(given):
        try:
            if resolved.tree:
                found = _label_by_tree(part, [size] * len(positions), resolved)
                painted += [torch.from_numpy(each.label_map).to(levels[0].device) for each in found]
                continue
            proposals = propose(part, resolved)
        except AttentionError as error:
            refused += [positions[i] for i in error.images]
            continue
        label_maps = assign(proposals.maps.unflatten(-1, part.grid), size)
        rle, segments = tidy([*label_maps], resolved, max(1, *proposals.counts))
        painted += parted(painted_ids(rle, segments).int(), rle.sizes)
        trace += [list(counts) for counts in proposals.trace]
    if refused:
        raise AttentionError(f"attention rows must be distributions; those of images {refused} are not", tuple(refused))
    result = painted[0] if alone else torch.stack(painted)
    return (result, trace[0] if alone else trace) if return_trace else result


def propose(maps: AttentionMaps, config: ResolvedConfig) -> Proposals:
    """Aggregate, merge, and refine where asked for; in mode `quality` split by the features instead.

    Raises ValueError for that mode where the model gives no features.
    """
    if config.mode == "quality":
        if maps.features is None:
            raise ValueError("mode 'quality' needs the features of cells, not their attention alone")
        return normalised_cut(maps.features, config.clusters)
    attention = _attention(maps, config)
    with tensor_cores(allowed=config.dtype != "float32"):
        proposals = merge(attention, config.thresholds, config.anchors_per_side)
    return refine(attention, proposals) if config.refine else proposals


def _among(refined: Int[Tensor, "H W"], painted: Int[Tensor, "H W"], labels: int) -> Int[Tensor, "H W"]:
    """Refined labels, as they were painted where the refined one is painted nowhere."""
    there = torch.zeros(labels, dtype=torch.bool, device=painted.device).scatter_(0, painted.flatten().long(), True)
    return refined.where(there[refined], painted)


def cluster(maps: AttentionMaps, config: ResolvedConfig, pool: int = POOL) -> Leaves:
    """Aggregate, and cluster cells, pooled so many a side, into the leaves of a tree."""
    attention = _attention(maps, config)
    with tensor_cores(allowed=config.dtype != "float32"):
        return grow(attention, config.leaves, pool)


def _attention(maps: AttentionMaps, config: ResolvedConfig) -> Attention:
    return aggregate(maps.levels, maps.grid, floor=FLOOR if config.mode == "fast" else 0.0)


def as_pixels(image: object) -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 3]. Raises ValueError for an array of another kind."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if not isinstance(image, np.ndarray):
        raise ValueError(f"an image is a PIL image or a uint8 array [H, W, 3], got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"an image array is uint8 [H, W, 3], got {image.dtype} {list(image.shape)}")
    return image


def _parts(maps: AttentionMaps) -> Iterator[tuple[range, AttentionMaps]]:
    """The attention labelled at a time, with its positions in the batch: the whole batch on a GPU, one image on a CPU.

    On a CPU one image fills the cores and the caches, and its labels are the same bits whatever the batch.
    """
    images = len(maps.levels[0])
    step = 1 if maps.levels[0].device.type == "cpu" else max(1, images)
    for first in range(0, images, step):
        positions = range(first, min(first + step, images))
        yield positions, _slice(maps, slice(positions.start, positions.stop))


def _slice(maps: AttentionMaps, images: slice) -> AttentionMaps:
    features, words = (None if each is None else each[images] for each in (maps.features, maps.words))
    return replace(maps, levels=tuple(level[images] for level in maps.levels), features=features, words=words)


def _in_frames(proposals: Proposals, grid: tuple[int, int], frames: Sequence[Frame]) -> list[Int[Tensor, "_ _"]]:
    """Labels in the frames of the sources: assigned there where the model saw a whole image, else through the crop."""
    maps = proposals.maps.unflatten(-1, grid)
    found: list[Tensor] = []
    for part, size in by_size([each.output for each in frames], maps.device):
        own = frames[part.start]
        if own.window == (0, 0, *size) and own.antialias:
            found += assign(maps[part], size).unbind()
        else:
            found += paste(assign(maps[part], own.model), own.window, size).unbind()
    return found


def _levels(maps: Sequence[Tensor | np.ndarray]) -> tuple[tuple[Tensor, ...], bool]:
    """The levels, finest first, with a batch axis; and whether a single image was given."""
    if len(maps) == 0:
        raise ValueError("attention maps are needed for at least one level, got an empty list")
    levels = sorted((torch.as_tensor(level) for level in maps), key=lambda level: -level.shape[-1])
    shapes = [list(level.shape) for level in levels]
    if {level.ndim for level in levels} not in ({2}, {3}) or any(
        level.shape[-1] != level.shape[-2] for level in levels
    ):
        raise ValueError(f"maps are all [n, n] or all [B, n, n], got {shapes}")
    if len({level.shape[-1] for level in levels}) < len(levels):
        raise ValueError(f"one map a level is needed, the mean over its layers; got {shapes}")
    if not all(level.is_floating_point() for level in levels) or any((level < 0).any() for level in levels):
        raise ValueError("attention is floating-point probability, but some values are negative or whole numbers")
    alone = levels[0].ndim == 2
    return tuple(level[None] if alone else level for level in levels), alone


def _square(finest: Tensor) -> tuple[int, int]:
    side = math.isqrt(finest.shape[-1])
    if side * side != finest.shape[-1]:
        raise ValueError(f"{finest.shape[-1]} cells are no square: give grid=(height, width)")
    return side, side
