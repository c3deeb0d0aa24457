"""Average linkage against scipy's, and cuts of trees against a clustering done again, literally."""

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from diffseg.hierarchy.leaves import POOL, Leaves, last_merges, members, pooled
from diffseg.hierarchy.linkage import average_linkage
from diffseg.method.aggregate import aggregate
from diffseg.method.merge import Logged, symmetric_kl
from tests.support import synthetic
from tests.support.trees import tree_of


def distances(seed: int, count: int) -> torch.Tensor:
    points = np.random.default_rng(seed).random((count, 3))
    return torch.from_numpy(np.square(points[:, None] - points).sum(-1)).float()[None]


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(set(one.tolist())) == len(set(other.tolist()))


@pytest.mark.parametrize("count", [2, 3, 10, 77, 300])
def test_merges_are_scipy_s(count):
    given = distances(count, count)
    literal = linkage(squareform(given[0].numpy(), checks=False), "average")
    found = average_linkage(given).height[0]
    assert found[0] == torch.inf
    assert found[1:].sort().values.numpy() == pytest.approx(literal[:, 2], rel=1e-5)


def test_a_single_map_has_no_merge():
    found = average_linkage(torch.zeros(2, 1, 1))
    assert (found.into.tolist(), found.height.tolist()) == ([[0], [0]], [[torch.inf], [torch.inf]])


def test_equal_maps_are_merged_into_one_chain_whose_heights_rise():
    found = average_linkage(torch.zeros(1, 9, 9))
    heights = found.height[0].sort().values[:-1]
    assert (heights.diff() >= 0).all()
    assert heights[-1] < 1e-30
    assert (found.height.gather(1, found.into) > found.height)[:, 1:].all(), "what is merged into ends later"


def test_images_of_a_batch_do_not_know_each_other():
    given = [distances(seed, 40) * scale for seed, scale in ((1, 1.0), (2, 100.0), (3, 0.01))]
    given[1][0, 20:, :20] = given[1][0, :20, 20:] = 1e4  # and its rounds are others
    together = average_linkage(torch.cat(given))
    for image, alone in enumerate(given):
        single = average_linkage(alone)
        assert torch.equal(together.into[image], single.into[0])
        assert torch.equal(together.height[image], single.height[0])


def literal_divergence(maps: np.ndarray) -> np.ndarray:
    """Symmetric KL between distributions, by its definition."""
    shares = maps / maps.sum(-1, keepdims=True)
    return np.array([[((p - q) * np.log(p / q)).sum() / 2 for q in shares] for p in shares])


def test_a_thousand_cuts_of_fifty_images_nest_and_are_a_literal_clustering_of_their_maps():
    rng = np.random.default_rng(0)
    grid, cuts = (8, 12), 0
    for seed in range(50):
        levels = synthetic.attention(synthetic.blobs(grid, 3 + seed % 5, seed), (1, 2), seed, noise=0.5)
        attention = aggregate([torch.from_numpy(level)[None] for level in levels], grid, floor=1e-12)
        maps = attention.whole()[0].numpy().astype(np.float64).reshape(4, 2, 6, 2, -1).mean((1, 3)).reshape(24, -1)
        literal = linkage(squareform(literal_divergence(maps), checks=False), "average")

        logged = Logged(pooled(attention, POOL)[0])
        leaf, merges = last_merges(average_linkage(symmetric_kl(logged, logged)), 16)
        nodes = torch.zeros(1, 31, 4, dtype=torch.int32)
        tree = tree_of(Leaves(leaf, merges, nodes), range(16))

        least = literal[-16, 2]  # below, there are leaves alone
        before = None
        for height in np.sort(rng.uniform(least, 1.1 * literal[-1, 2], 20)):
            found = tree.at_height(height)[leaf[0].numpy()]
            assert same_partition(found, fcluster(literal, height, "distance"))
            if before is not None:
                assert len(set(zip(before.tolist(), found.tolist(), strict=True))) == len(set(before.tolist()))
            before, cuts = found, cuts + 1
    assert cuts == 1000


def test_the_members_of_each_node_are_those_of_its_merges():
    leaf, merges = last_merges(average_linkage(distances(5, 60)), 12)
    assert leaf.unique().tolist() == list(range(12))
    [found] = members(merges)
    order = merges.height[0].argsort()[:-1]
    sets = [{i} for i in range(12)]
    for at, ends in enumerate(order.tolist()):
        into = int(merges.into[0, ends])
        joined = sets[into] | sets[ends]
        assert set(found[12 + at].nonzero().flatten().tolist()) == joined
        for each in joined:
            sets[each] = joined
    assert found[-1].all()
