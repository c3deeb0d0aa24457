import numpy as np
import pytest
import torch

from diffseg.labels import edges
from diffseg.labels.edges import SCHEDULE, label_codes, planes, refine_edges, spread
from infra.scenes.scene import draw_scene
from tests.support import literal

PUBLISHED = ((1, 2, 4, 8),) * 10
SQUARE = np.s_[20:60, 25:75]


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def colours(*images):
    return planes(images, torch.device("cpu"))


def labels_of(size, count, seed=0):
    coarse = np.random.default_rng(seed).integers(0, count, (4, 5))
    return torch.from_numpy(np.kron(coarse, np.ones((size[0] // 4 + 1, size[1] // 5 + 1)))[: size[0], : size[1]]).int()


@pytest.mark.parametrize(("dilations", "rounds"), [((1, 2, 4, 8), 10), ((1, 3), 4)])
def test_the_published_refinement_is_that_of_the_literal_implementation(dilations, rounds):
    image, labels = noise((13, 17)), labels_of((13, 17), 3)

    mixture = spread([labels], colours(image), torch.from_numpy(label_codes(3)), (dilations,) * rounds)

    for label in range(3):
        expected = literal.adapt_to_pixels(image, (labels == label).double().numpy(), dilations, rounds)
        assert np.abs(mixture[:, label].view(13, 17).numpy() - expected).max() < 1e-5


@pytest.mark.parametrize("schedule", [SCHEDULE, PUBLISHED])
@pytest.mark.parametrize("off", [-5, 5])
def test_a_square_is_traced_to_the_pixel_from_a_border_five_pixels_off(schedule, off):
    image = np.full((80, 100, 3), 60, np.uint8)
    image[SQUARE] = (200, 120, 60)
    painted = torch.zeros(80, 100, dtype=torch.int32)
    painted[20 - off : 60 + off, 25 - off : 75 + off] = 1

    [refined] = refine_edges([painted], colours(image), 2, schedule)

    assert refined[SQUARE].eq(1).all()
    assert refined.sum() == 40 * 50


def test_where_the_picture_is_flat_a_border_stays():
    halves = torch.zeros(80, 100, dtype=torch.int32)
    halves[:, 47:] = 1
    assert torch.equal(refine_edges([halves], colours(np.full((80, 100, 3), 60, np.uint8)), 2)[0], halves)


def test_labels_do_not_depend_on_what_is_refined_together_or_on_the_tiles(monkeypatch):
    sizes = [(40, 60), (60, 40), (1, 70), (2, 3), (1, 1)]
    images = [noise(size, i) for i, size in enumerate(sizes)]
    painted = [labels_of(size, 20, i) for i, size in enumerate(sizes)]
    alone = [refine_edges([each], colours(image), 20)[0] for each, image in zip(painted, images, strict=True)]
    assert any(not torch.equal(each, before) for each, before in zip(alone, painted, strict=True))
    assert all(map(torch.equal, refine_edges(painted, colours(*images), 20), alone))

    monkeypatch.setattr(edges, "PIXELS", {"cpu": 2500})  # the first alone, the others together
    monkeypatch.setattr(edges, "TILE", {"cpu": 1000})

    assert all(map(torch.equal, refine_edges(painted, colours(*images), 20), alone))


def test_a_single_label_stays():
    painted = torch.zeros(3, 4, dtype=torch.int32)
    assert refine_edges([painted], colours(noise((3, 4))), 1)[0] is painted


@pytest.mark.parametrize("labels", [2, 16, 17, 64, 65, 256])
def test_codes_of_labels_are_far_from_each_other(labels):
    codes = label_codes(labels)
    products = codes @ codes.T
    assert len(codes) == labels
    assert np.allclose(np.diag(products), 1)
    assert np.abs(products - np.eye(labels)).max() <= (0.25 if labels > 16 else 0)


def test_many_labels_end_where_a_channel_for_each_would_have_them():
    image = draw_scene(np.random.default_rng(3), (240, 320)).image
    painted = torch.arange(64, dtype=torch.int32).view(8, 8).repeat_interleave(30, 0).repeat_interleave(40, 1)

    [refined] = refine_edges([painted], colours(image), 64)

    mixture = spread([painted], colours(image), torch.eye(64), SCHEDULE)
    assert (refined != painted).float().mean() > 0.1
    assert (refined.flatten() == mixture.argmax(1)).float().mean() > 0.95
