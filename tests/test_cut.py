"""Label maps at any cut, against cutting by hand."""

import numpy as np
import pytest
from scipy import ndimage

from diffseg.cut import Cut, segment_vectors, segmentation
from diffseg.prior import CONSTANT, PRIOR
from diffseg.segmenter import DiffSeg
from diffseg.tree import FEATURES
from diffseg.types import IGNORE
from tests.support.trees import a_tree, a_vector_each
from tests.test_segmenter import Colours


def by_hand(leaf_map, tree, cut):
    """Segments merged pixel by pixel."""
    label_map = leaf_map.copy()
    for number, (left, right, height) in enumerate(tree.merges[["left", "right", "height"]].tolist()):
        enough = height > cut.height if cut.segments is None else len(tree.leaves) - number <= cut.segments
        if enough:
            break
        label_map[(label_map == left) | (label_map == right)] = len(tree.leaves) + number
    ids = [id_ for id_ in np.unique(label_map) if id_ != IGNORE]
    first = {id_: leaf_map[label_map == id_].min() for id_ in ids}
    ids.sort(key=first.__getitem__)
    found = np.full_like(leaf_map, IGNORE)
    for new, old in enumerate(ids):
        found[label_map == old] = new
    return found, ids


@pytest.mark.parametrize(
    "cut", [*(Cut(height=h) for h in (0.0, 0.2, 0.5, 9.0)), *(Cut(segments=n) for n in (1, 3, 99))]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_cut_is_what_merging_by_hand_gives(cut, seed):
    leaf_map, tree = a_tree(seed)
    leaf_map[0, :3] = IGNORE
    found = segmentation(leaf_map, tree, cut.of(tree))
    label_map, nodes = by_hand(leaf_map, tree, cut)
    assert (found.label_map == label_map).all()
    features = [*tree.leaves.tolist(), *zip(*(tree.merges[name].tolist() for name in FEATURES), strict=True)]
    for segment, node in zip(found.segments, nodes, strict=True):
        y, x = np.nonzero(label_map == segment.id)
        box = (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        margin, _, _, stability, contrast, compactness = (value / 255 for value in features[node])
        assert (segment.area, segment.box) == (len(x), box)
        shape = {"log_area": np.log(len(x) / (label_map >= 0).sum()), "elongation": np.log(max(box[2:]) ** 2 / len(x))}
        borders = {"contrast": contrast, "log_compactness": np.log(max(compactness, 1 / 255))}
        known = {"margin": margin, "stability": stability, **borders, **shape}
        expected = 1 / (1 + np.exp(-CONSTANT - sum(PRIOR[name] * value for name, value in known.items())))
        assert segment.score == pytest.approx(expected if len(nodes) > 1 else 0)
    weighed = sum(each.score * each.area for each in found.segments) / (label_map >= 0).sum()
    assert found.quality == (None if len(found.segments) == 1 else pytest.approx(weighed))


@pytest.mark.parametrize("seed", [0, 1, 3, 4])
def test_split_segments_are_the_connected_pieces_in_order_of_their_first_pixels(seed):
    leaf_map, tree = a_tree(seed)
    leaf_map[0, :3] = IGNORE
    of_leaf = Cut(segments=3).of(tree)
    whole, found = (segmentation(leaf_map, tree, of_leaf, split=split) for split in (False, True))
    pieces = [
        (np.flatnonzero(parts == number)[0], tuple(np.flatnonzero(parts == number)))
        for segment in whole.segments
        for parts, count in [ndimage.label(whole.label_map == segment.id)]
        for number in range(1, count + 1)
    ]
    assert len(pieces) > len(whole.segments)
    assert [tuple(np.flatnonzero(found.label_map == each.id)) for each in found.segments] == [
        p for _, p in sorted(pieces)
    ]
    assert [each.area for each in found.segments] == [len(pixels) for _, pixels in sorted(pieces)]
    assert ((found.label_map == IGNORE) == (leaf_map == IGNORE)).all()


@pytest.mark.parametrize("split", [False, True])
def test_the_cut_of_the_configuration_is_what_the_method_labels(split):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (6, 9, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    model = Colours(tree=True, cut=0.6, split_components=split)
    [result] = DiffSeg(model).segment([image])
    assert result.leaf_map is not None
    assert result.tree is not None
    again = segmentation(result.leaf_map, result.tree, Cut(height=0.6).of(result.tree), split=split)
    assert (again.label_map == result.label_map).all()
    assert again.segments == result.segments
    assert again.quality == result.quality
    assert len(result.segments) > 2


@pytest.mark.parametrize("split", [False, True])
def test_a_vector_of_a_segment_is_the_mean_over_its_pixels(split):
    leaf_map, tree = a_tree(3)
    vectors = a_vector_each(3, len(tree.leaves))
    of_leaf = Cut(segments=4).of(tree)
    label_map = segmentation(leaf_map, tree, of_leaf, split=split).label_map
    found = segment_vectors(leaf_map, vectors, label_map)
    of_pixel = (vectors.values * vectors.scales[:, None].astype(float))[leaf_map]
    assert found.shape == (label_map.max() + 1, 64)
    for id_, vector in enumerate(found):
        assert vector == pytest.approx(of_pixel[label_map == id_].mean(axis=0))


def test_a_tree_of_other_leaves_is_refused():
    leaf_map, tree = a_tree(0)
    for other in (np.where(leaf_map == 1, 0, leaf_map), np.where(leaf_map == 0, len(tree.leaves), leaf_map)):
        with pytest.raises(ValueError, match="leaves of its tree"):
            segmentation(other, tree, Cut(segments=2).of(tree))


@pytest.mark.parametrize(
    "given", [{}, {"height": 1.0, "segments": 2}, {"height": -1.0}, {"height": np.nan}, {"segments": 0}]
)
def test_what_is_no_cut_is_refused(given):
    with pytest.raises(ValueError, match="a cut"):
        Cut(**given)
