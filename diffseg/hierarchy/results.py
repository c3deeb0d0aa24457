"""Results of trees: what is left of an image's tree once its painted leaves were cleaned up, cut and measured.

Letters: B images, R runs of all images (see labels/rle.py), L leaves of an image, S segments of all images.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor

from diffseg.config import ResolvedConfig
from diffseg.cut import quality
from diffseg.hierarchy.borders import with_borders
from diffseg.hierarchy.leaves import Leaves
from diffseg.labels.results import ids, segmentations
from diffseg.labels.rle import RunLengths, Segments, adjacent_runs, connected_components, rle_decode, segments_of
from diffseg.prior import prior
from diffseg.tree import FEATURES, LEAF, MERGE, Tree
from diffseg.types import Float, Int, Segmentation, UInt8


def cut_trees(
    rle: RunLengths,
    found: Segments,
    leaves: Leaves,
    config: ResolvedConfig,
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]] = (),
) -> list[Segmentation]:
    """The results of a batch at the cut of the configuration; vectors are left out.

    found: the painted leaves that have pixels; the others are left out of the trees. pictures: of the batch, or none.
    """
    real = found.of_run >= 0
    bare = restricted(leaves, _of_each(found, found.of_run[real], rle.label[real]), found.first)
    leaf_maps = [decoded.cpu().numpy() for decoded in rle_decode(rle, ids(found))]
    trees = [with_borders(*each) for each in zip_longest(bare, leaf_maps, pictures)]
    of_leaf = [tree.at_height(config.cut or 0.0) for tree in trees]
    nodes = [tree.features()[tree.nodes_of(of)] for tree, of in zip(trees, of_leaf, strict=True)]
    before = np.cumsum([0, *map(len, nodes)])[:-1]  # segments of the images before
    numbered = np.concatenate([first + of for first, of in zip(before, of_leaf, strict=True)])
    device = rle.start.device
    region = torch.from_numpy(numbered).to(device)[found.of_run.clamp(min=0)].where(real, rle.label)
    pieces = connected_components(region, adjacent_runs(rle)) if config.split_components else region
    segments = segments_of(rle, pieces.clamp(min=0))
    owner = _of_each(segments, segments.of_run[real], region[real].double())
    results = [_scored(result, np.concatenate(nodes)) for result in segmentations(rle, segments, owner)]
    return [
        replace(result, leaf_map=leaf_map, tree=tree)
        for result, leaf_map, tree in zip(results, leaf_maps, trees, strict=True)
    ]


def _scored(result: Segmentation, nodes: np.ndarray) -> Segmentation:
    """The result with the prior as score of each segment, in place of the number of its node."""
    shapes = np.array([(each.area, *each.box) for each in result.segments]).reshape(-1, 5)
    own = nodes[[int(each.score) for each in result.segments]]
    scores = prior(own, shapes[:, 0], shapes[:, 1:]).tolist()
    segments = tuple(replace(each, score=score) for each, score in zip(result.segments, scores, strict=True))
    return replace(result, segments=segments, quality=quality(segments))


def restricted(leaves: Leaves, kept: Int[Tensor, " S"], first: Int[Tensor, " B"]) -> list[Tree]:
    """The trees of a batch without the leaves that are not kept, each a cut of the whole tree wherever it is cut.

    What borders tell is not known yet: it is 0.

    kept: the leaves of all images that are left, image by image. first: where those of each image begin.
    """
    unknown = len(FEATURES) - leaves.features.shape[-1]
    of_nodes = torch.nn.functional.pad(leaves.features.byte(), (0, unknown))
    into, height, features = (part.cpu().numpy() for part in (leaves.merges.into, leaves.merges.height, of_nodes))
    numbers = np.split(kept.cpu().numpy(), first.cpu().numpy()[1:])
    return [_tree(*each) for each in zip(into, height, features, numbers, strict=True)]


def _tree(
    into: Int[np.ndarray, " _"], height: Float[np.ndarray, " _"], features: np.ndarray, kept: Int[np.ndarray, " L"]
) -> Tree:
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


def _of_each(segments: Segments, of_run: Int[Tensor, " r"], values: Tensor) -> Tensor:
    """The value of each segment, which all its runs share."""
    return values.new_zeros(len(segments.area)).scatter_(0, of_run, values)
