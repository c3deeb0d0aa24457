import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from diffseg.method.aggregate import aggregate
from diffseg.method.merge import merge
from diffseg.method.refine import cluster, refine
from tests.support import synthetic


def test_maps_join_the_nearest_centre():
    maps = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]])

    assert cluster(maps, torch.tensor([[5.0, 5.0], [0.0, 0.0]])).tolist() == [1, 1, 0]


def test_centres_move_until_clusters_are_at_rest():
    maps = torch.tensor([[0.0], [4.0], [5.0], [6.0], [20.0]])

    assert cluster(maps, torch.tensor([[0.0], [5.0]])).tolist() == [0, 0, 0, 0, 1]


def test_a_centre_that_no_map_is_near_stays_where_it_is():
    maps = torch.tensor([[1.0], [9.0], [10.0]])

    assert cluster(maps, torch.tensor([[100.0], [7.0]])).tolist() == [1, 1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_it_equals_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    maps = (rng.normal(size=(200, 8)) + 3 * rng.integers(0, 3, (200, 1))).astype(np.float32)
    start = maps[:5].copy()

    theirs = KMeans(n_clusters=5, init=start, n_init=1).fit(maps).labels_

    assert np.array_equal(cluster(torch.from_numpy(maps), torch.from_numpy(start)), theirs)


def attention(count):
    [level] = synthetic.attention(synthetic.blobs((8, 8), count, seed=count), (1,), seed=0)
    return aggregate([torch.from_numpy(level)[None]], (8, 8))


def test_proposals_become_the_means_of_their_clusters():
    maps = attention(3)
    proposals = merge(maps, (0.5, 0.5), 4)

    refined = refine(maps, proposals)

    nearest = cluster(maps.whole()[0], proposals.maps[0])
    assert refined.counts == proposals.counts
    for i in range(refined.counts[0]):
        torch.testing.assert_close(refined.maps[0, i], maps.whole()[0, nearest == i].mean(0))


def test_a_proposal_that_no_map_is_nearest_to_is_dropped():
    maps = attention(3)
    proposals = merge(maps, (0.5, 0.5), 4)
    far = torch.full_like(proposals.maps[:, :1], 100.0)
    count = proposals.counts[0]
    crowded = type(proposals)(
        torch.cat([far, proposals.maps], 1), (count + 1,), torch.rand(1, count + 1), proposals.trace
    )

    refined = refine(maps, crowded)

    assert refined.counts == (count,)
    torch.testing.assert_close(refined.maps[0, :count], refine(maps, proposals).maps[0])
    torch.testing.assert_close(refined.stability[0, :count], crowded.stability[0, 1:])


def test_an_image_without_proposals_stays_without():
    zeros = aggregate([torch.eye(4)[None]], (2, 2))

    assert refine(zeros, merge(zeros, (1.0,), 2)).counts == (0,)
