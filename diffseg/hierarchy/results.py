"""Results of trees: what is left of an image's tree once its painted leaves were cleaned up, cut and measured.

Letters: L leaves of an image.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from diffseg.config import ResolvedConfig, texts_of
from diffseg.cut import segment_vectors, segmentation
from diffseg.draw import resize_labels
from diffseg.hierarchy.borders import border_tables, with_borders
from diffseg.hierarchy.leaves import Leaves
from diffseg.labels.results import painted_ids
from diffseg.labels.rle import RunLengths, Segments, parted
from diffseg.method.geometry import Frame
from diffseg.transfer import download
from diffseg.tree import FEATURES, LEAF, MERGE, Tree
from diffseg.types import IGNORE, WORD, Float, Int, Segmentation, UInt8

BEST = 3  # lines of words that are kept


def cut_trees(
    rle: RunLengths,
    found: Segments,
    leaves: Leaves,
    config: ResolvedConfig,
    colours: UInt8[Tensor, "3 T"] | None = None,
    beside: Sequence[Tensor] = (),
) -> tuple[list[Segmentation], list[slice], list[np.ndarray]]:
    """The results of a batch at the cut of the configuration, without vectors and ridges.

    found: the painted leaves that have pixels; the others are left out of the trees. colours: of the pictures, if
    there are any. beside: what else is wanted on the host, where this copies all that it needs in one piece. Returned
    too, after the place of each image's leaves among those of all.
    """
    leaf = torch.zeros_like(found.area).scatter_(0, found.of_run, rle.label)
    numbers = torch.stack([leaf, found.image, found.area, *found.box.T])
    of_trees = leaves.merges.into, leaves.merges.height, leaves.features.byte(), *border_tables(rle, found, colours)
    copied = download(numbers, *of_trees, painted_ids(rle, found), *beside)
    (number, image, areas, *sides), into, height, features, length, difference, flat, *others = copied
    ends = np.searchsorted(image, np.arange(len(rle.sizes) + 1)).tolist()
    own, boxes = [slice(*each) for each in pairwise(ends)], np.stack(sides, axis=1)
    kept = [number[part] for part in own]
    trees = [restricted(*each) for each in zip(into, height, features, kept, strict=True)]
    leaf_maps = parted(flat.astype(np.int32, copy=False), rle.sizes)
    results = []
    for bare, leaf_map, part, *tables in zip(trees, leaf_maps, own, length, difference, strict=True):
        count = part.stop - part.start
        tree = with_borders(bare, areas[part], *(each[:count, :count] for each in tables))
        of_leaf, measured = tree.at_height(config.cut or 0.0), (areas[part], boxes[part])
        cut = segmentation(leaf_map, tree, of_leaf, split=config.split_components, measured=measured)
        results.append(replace(cut, leaf_map=leaf_map, tree=tree))
    return results, own, others


def restricted(
    into: Int[np.ndarray, " _"],
    height: Float[np.ndarray, " _"],
    features: UInt8[np.ndarray, "_ 4"],
    kept: Int[np.ndarray, " L"],
) -> Tree:
    """The tree of an image without the leaves that are not kept, a cut of the whole tree wherever it is cut.

    What borders tell is not known yet: it is 0.
    """
    features = np.pad(features, ((0, 0), (0, len(FEATURES) - features.shape[1])))
    nodes = np.full(len(into), -1)  # that hold each cluster's leaves; -1: no leaf of it is left
    nodes[kept] = np.arange(len(kept))
    merges: list[tuple[int, ...]] = []
    own, of_merges = np.split(features.copy(), [len(into)])
    made = iter(of_merges)
    for ends in np.argsort(height, kind="stable")[:-1]:
        if ends <= len(of_merges):  # else an object was carved out of it, which tells nothing new of it
            own[into[ends]] = next(made)
        left, right = nodes[into[ends]], nodes[ends]
        if left >= 0 and right >= 0:
            nodes[into[ends]] = len(kept) + len(merges)
            merges.append((left, right, height[ends], *own[into[ends]]))
        elif right >= 0:
            nodes[into[ends]] = right
    return Tree(np.array([tuple(row) for row in features[kept]], LEAF), np.array(merges, MERGE))


def with_words(
    results: Sequence[Segmentation], maps: Float[Tensor, "B W h w"], lines: Sequence[str], frames: Sequence[Frame]
) -> list[Segmentation]:
    """Results with the best lines of words of each leaf, or segment without a tree. A word's score is the mean over
    pixels of the cells that they lie in, a line's that of its best word (`texts_of`).
    """
    found, firsts = [], np.cumsum([0, *map(len, texts_of(lines))])[:-1]
    for result, own, frame in zip(results, *download(maps), frames, strict=True):
        labels = result.label_map if result.leaf_map is None else result.leaf_map
        cells, (top, left, height, width) = np.full(labels.shape, IGNORE, np.int32), frame.window
        numbers, own = np.arange(own[0].size, dtype=np.int32).reshape(own.shape[1:]), own.reshape(len(own), -1)
        cells[top : top + height, left : left + width] = resize_labels(numbers, (height, width))
        scores = np.maximum.reduceat(segment_vectors(cells, own.T, labels), firsts, axis=1)
        words, best = np.zeros((len(scores), BEST), WORD), np.argsort(-scores, axis=1, kind="stable")[:, :BEST]
        words["line"][:, : best.shape[1]] = best
        words["score"][:, : best.shape[1]] = np.take_along_axis(scores, best, axis=1)
        found.append(replace(result, words=words))
    return found
