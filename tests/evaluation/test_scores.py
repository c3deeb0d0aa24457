"""Matching, agreement of partitions, views and intervals."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from diffseg.evaluation.bootstrap import mean_interval, pooled_intervals
from diffseg.evaluation.matching import Counts, DatasetMatching, confusion, hungarian_match
from diffseg.evaluation.partition import (
    TOLERANCE,
    Outline,
    adjusted_rand,
    boundaries,
    boundary_f,
    covering,
    max_matching,
    overlaps,
)
from diffseg.evaluation.scores import score_image, square_view, summarise, whole_view

RECORDED = Path(__file__).parents[3] / "shared" / "reference" / "cases" / "hungarian.npz"

unhurried = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
LEFT_RIGHT = np.array([[0, 0, 1, 1]] * 4)
label_maps = arrays(np.int64, (6, 5), elements=st.integers(0, 3))
truths = arrays(np.int64, (6, 5), elements=st.integers(-1, 3))


def cases():
    if not RECORDED.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason="no recorded results beside the repository"))]
    with np.load(RECORDED) as stored:
        return sorted({name.split("/")[0] for name in stored})


@pytest.mark.parametrize("case", cases())
def test_the_published_matching_gives_the_recorded_arrays(case):
    stored = np.load(RECORDED)
    expected = {name: stored[f"{case}/{name}"] for name in ("tp", "fp", "fn", "all", "unique", "acc", "miou")}

    tp, fp, fn, valid = hungarian_match(stored[f"{case}/pred"], stored[f"{case}/label"], int(stored[f"{case}/n_class"]))

    assert valid == expected["all"]
    assert tp.sum() == expected["tp"].sum()
    assert fn.sum() == expected["fn"].sum()
    assert tp.sum() / valid == expected["acc"]
    if expected["unique"]:
        assert np.array_equal(tp, expected["tp"])
        assert np.array_equal(fp, expected["fp"])
        assert np.array_equal(fn, expected["fn"])
        with np.errstate(invalid="ignore"):
            assert np.nanmean(tp / (tp + fp + fn)) == expected["miou"]


def test_ids_do_not_matter_to_the_matching():
    tp, fp, fn, valid = hungarian_match(1 - LEFT_RIGHT, LEFT_RIGHT, 2)

    assert tp.tolist() == [8, 8]
    assert fp.tolist() == fn.tolist() == [0, 0]
    assert valid == 16


def test_each_image_of_a_stack_is_matched_by_itself():
    tp, fp, fn, valid = hungarian_match(np.stack([LEFT_RIGHT, 1 - LEFT_RIGHT]), np.stack([LEFT_RIGHT] * 2), 2)

    assert tp.tolist() == [16, 16]
    assert fp.sum() == fn.sum() == 0
    assert valid == 32


def test_a_matching_for_the_whole_data_set_has_one_meaning_for_an_id():
    matching = DatasetMatching(2)
    for prediction in (LEFT_RIGHT, 1 - LEFT_RIGHT, LEFT_RIGHT):
        matching.add(*confusion(prediction, LEFT_RIGHT, 2))

    assert matching.counts().accuracy == pytest.approx(2 / 3)


def test_a_matching_for_the_whole_data_set_takes_more_clusters_than_classes():
    matching = DatasetMatching(2)
    matching.add(*confusion(LEFT_RIGHT, LEFT_RIGHT, 2))
    matching.add(*confusion(np.full((4, 4), 300), LEFT_RIGHT, 2))

    counts = matching.counts()

    assert counts.tp.tolist() == [8, 8]
    assert counts.fp.tolist() == [0, 0]  # a cluster no class was given costs only what it hides
    assert counts.fn.tolist() == [8, 8]


def test_a_segment_given_to_an_absent_class_is_its_false_positive():
    prediction, truth = LEFT_RIGHT, np.zeros_like(LEFT_RIGHT)

    tp, fp, fn, _ = hungarian_match(prediction, truth, 2)

    assert tp.tolist() == [8, 0]
    assert fp.tolist() == [0, 8]
    assert fn.tolist() == [8, 0]


def test_segments_beyond_the_number_of_classes_cost_nothing_but_what_they_miss():
    prediction = np.arange(16).reshape(4, 4)

    tp, fp, fn, _ = hungarian_match(prediction, np.zeros((4, 4), int), 1)

    assert (tp.tolist(), fp.tolist(), fn.tolist()) == ([1], [0], [15])


@unhurried
@given(prediction=label_maps, truth=truths)
def test_no_other_assignment_finds_more_pixels(prediction, truth):
    tp, fp, fn, valid = hungarian_match(prediction, truth, 4)

    best = max(
        sum(((truth == c) & (prediction == s)).sum() for c, s in enumerate(way)) for way in permutations(range(4))
    )
    assert tp.sum() == best
    assert valid == (truth >= 0).sum() == tp.sum() + fn.sum()
    assert fp.sum() == fn.sum()  # as many segments as classes: whoever is missed by one is claimed by another


def test_pixels_no_segment_claims_are_missed():
    prediction = np.where(LEFT_RIGHT == 1, -1, 0)

    score = score_image(prediction, [LEFT_RIGHT], num_classes=2)

    assert score.counts is not None
    assert score.counts.tp.tolist() == [8, 0]
    assert score.counts.fn.tolist() == [0, 8]
    assert score.accuracy == score.covering == 0.5
    assert score.segments == 1


@pytest.mark.parametrize("ids", [254, 255, 40_000])
def test_large_ids_are_segments_like_others(ids):
    prediction = LEFT_RIGHT * ids

    assert score_image(prediction.astype(np.uint16), [LEFT_RIGHT]).miou == 1
    assert hungarian_match(prediction, LEFT_RIGHT, 2)[0].tolist() == [8, 8]


@pytest.mark.parametrize(
    ("prediction", "num_classes", "message"),
    [
        (np.zeros((3, 4), int), 2, r"one size, got \(3, 4\) and \(4, 4\)"),
        (np.full((4, 4), 70_000), 2, "ids end at 65535, got 70000"),
        (LEFT_RIGHT, 0, "num_classes must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_matched_is_refused(prediction, num_classes, message):
    with pytest.raises(ValueError, match=message):
        hungarian_match(prediction, LEFT_RIGHT, num_classes)


def test_an_image_and_its_truth_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"one size, got \(4, 4\) and \(4, 5\)"):
        score_image(LEFT_RIGHT, [np.zeros((4, 5), int)])


@pytest.mark.parametrize(("truth", "message"), [([], "at least one"), ([np.full((4, 4), -1)], "ignores every pixel")])
def test_an_image_without_usable_truth_is_refused(truth, message):
    with pytest.raises(ValueError, match=message):
        score_image(LEFT_RIGHT, truth)


def literal_covering(prediction, truth):
    valid, total = truth >= 0, 0.0
    for region in np.unique(truth[valid]):
        ours = (truth == region) & valid
        ious = []
        for segment in np.unique(prediction[valid]):
            theirs = (prediction == segment) & valid
            ious.append((ours & theirs).sum() / (ours | theirs).sum())
        total += ours.sum() * max(ious)
    return total / valid.sum()


@unhurried
@given(prediction=label_maps, truth=truths.filter(lambda t: (t >= 0).any()))
def test_covering_is_its_definition(prediction, truth):
    assert covering(*overlaps(prediction, truth)) == pytest.approx(literal_covering(prediction, truth))


@unhurried
@given(prediction=label_maps, truth=truths.filter(lambda t: (t >= 0).any()))
def test_the_adjusted_rand_index_is_that_of_scikit_learn(prediction, truth):
    valid = truth >= 0
    expected = adjusted_rand_score(truth[valid], prediction[valid])

    assert adjusted_rand(*overlaps(prediction, truth)) == pytest.approx(expected)


def test_regions_may_have_ids_of_any_size():
    large = LEFT_RIGHT * 3_000_000_000

    assert score_image(LEFT_RIGHT, [large]) == score_image(LEFT_RIGHT, [LEFT_RIGHT])


def test_the_adjusted_rand_index_holds_on_large_images():
    random = np.random.default_rng(0)
    prediction, truth = random.integers(0, 300, (2, 700, 900))
    truth[:350] = prediction[:350]

    expected = adjusted_rand_score(truth.ravel(), prediction.ravel())
    assert adjusted_rand(*overlaps(prediction, truth)) == pytest.approx(expected)


def literal_boundary_f(prediction, truth, tolerance):
    """Every pair of boundary pixels, one by one."""

    def edges(label_map, labelled):
        height, width = label_map.shape
        found = set()
        for y in range(height):
            for x in range(width):
                for v, u in ((y, x + 1), (y + 1, x)):
                    inside = v < height and u < width
                    if inside and labelled[y, x] and labelled[v, u] and label_map[y, x] != label_map[v, u]:
                        found.add((y, x))
        return sorted(found)

    ours, theirs = edges(prediction, (prediction >= 0) & (truth >= 0)), edges(truth, truth >= 0)
    if not ours or not theirs:
        return float(bool(ours) == bool(theirs))
    near = cdist(ours, theirs) <= tolerance * np.hypot(*truth.shape)
    rows, columns = linear_sum_assignment(~near)
    pairs = near[rows, columns].sum()
    precision, recall = pairs / len(ours), pairs / len(theirs)
    return 2 * precision * recall / (precision + recall) if pairs else 0.0


@unhurried
@given(prediction=truths, truth=truths, tolerance=st.sampled_from([0.0, 0.13, 0.2, 0.26, 0.3, 0.5, 2.0]))
def test_boundary_f_is_its_definition(prediction, truth, tolerance):
    measured = boundary_f(Outline(prediction), Outline(truth), tolerance)

    assert measured == pytest.approx(literal_boundary_f(prediction, truth, tolerance))


@unhurried
@given(seed=st.integers(0, 99), share=st.sampled_from([0.05, 0.3, 0.6]), reach=st.floats(0, 6))
def test_pairs_are_as_many_as_an_assignment_finds(seed, share, reach):
    one, other = np.random.default_rng(seed).random((2, 17, 13)) < share
    near = cdist(np.argwhere(one), np.argwhere(other)) <= reach
    rows, columns = linear_sum_assignment(~near)

    assert max_matching(one, other, reach) == near[rows, columns].sum()


def test_boundaries_are_those_scikit_image_finds():
    from skimage.segmentation import find_boundaries

    label_map = np.kron(np.random.default_rng(1).integers(0, 3, (5, 6)), np.ones((7, 5), int))
    ours = boundaries(label_map, np.ones(label_map.shape, bool))

    thick = find_boundaries(label_map, connectivity=1, mode="thick")  # both sides of every edge
    assert not (ours & ~thick).any()
    other_side = np.zeros_like(ours)
    other_side[:, 1:] |= label_map[:, :-1] != label_map[:, 1:]
    other_side[1:] |= label_map[:-1] != label_map[1:]
    assert np.array_equal(ours | other_side, thick)


def test_a_boundary_moved_within_the_tolerance_is_the_same_boundary():
    columns = np.arange(400)
    truth, close, far = (Outline(np.tile(columns >= at, (300, 1)).astype(int)) for at in (200, 203, 206))
    assert 3 < TOLERANCE * 500 < 6

    assert boundary_f(close, truth) == 1
    assert boundary_f(far, truth) == 0


@unhurried
@given(truth=truths.filter(lambda t: (t >= 0).any()), other=label_maps)
def test_the_truth_itself_scores_best(truth, other):
    perfect, score = score_image(np.maximum(truth, 0), [truth]), score_image(other, [truth])

    for measure in ("covering", "ari", "boundary_f", "miou", "accuracy"):
        assert getattr(perfect, measure) == pytest.approx(1)
        assert getattr(score, measure) <= 1 + 1e-9


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_label_maps_may_have_any_integer_type(dtype):
    truth = np.array([[0, 1, 255, 255]] * 4).astype(np.uint8)

    score = score_image(LEFT_RIGHT.astype(dtype), [truth], num_classes=27)

    assert score.counts is not None
    assert score.counts.valid == hungarian_match(LEFT_RIGHT.astype(dtype), truth, 27)[3] == 8
    assert score.accuracy == 0.5


def test_several_annotators_are_averaged():
    one = np.zeros((4, 4), int)

    both = score_image(LEFT_RIGHT, [LEFT_RIGHT, one])

    assert both.covering == (1 + 0.5) / 2
    assert both.ari == (1 + 0) / 2
    assert both.boundary_f == (1 + 0) / 2
    assert both.regions == 1.5


@pytest.mark.parametrize("shape", [(480, 640), (427, 640), (1024, 2048), (333, 500), (512, 512), (97, 31)])
def test_the_square_view_is_nearest_exact_of_the_centre_crop(shape):
    label_map = np.arange(shape[0] * shape[1]).reshape(shape)
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    crop = torch.from_numpy(label_map[top : top + side, left : left + side]).double()
    expected = torch.nn.functional.interpolate(crop[None, None], (512, 512), mode="nearest-exact")[0, 0].numpy()

    assert np.array_equal(square_view(*shape).sample(label_map), expected)


def test_a_smaller_label_map_of_the_same_image_lands_on_the_same_pixels():
    coarse = np.random.default_rng(0).integers(0, 9, (30, 40))
    fine = np.kron(coarse, np.ones((16, 16), int))

    assert np.array_equal(square_view(480, 640).sample(coarse), square_view(480, 640).sample(fine))
    assert np.array_equal(whole_view(480, 640).sample(coarse), fine)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(3).normal(0.5, 0.2, 400)

    interval = mean_interval(np.append(values, np.nan))

    half = 1.96 * values.std() / np.sqrt(400)
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.value == pytest.approx(half, rel=0.15)
    assert interval.value - interval.low == pytest.approx(half, rel=0.15)


def test_pooled_figures_weigh_images_by_their_pixels():
    def counts(tp, fp, fn):
        return Counts(np.array(tp), np.array(fp), np.array(fn))

    accuracy, miou = pooled_intervals([counts([90, 0], [0, 0], [10, 0]), counts([0, 5], [0, 5], [0, 0])])

    assert accuracy.value == 95 / 105
    assert miou.value == (90 / 100 + 5 / 10) / 2
    assert accuracy.low <= accuracy.value <= accuracy.high


def test_a_class_that_never_occurs_has_no_say_in_the_mean():
    summary = summarise([score_image(LEFT_RIGHT, [LEFT_RIGHT], num_classes=27)] * 3)

    assert summary.images == 3
    assert summary.miou is not None
    assert summary.class_iou is not None
    assert summary.miou.value == 1
    assert np.isfinite(summary.class_iou).sum() == 2


def test_a_truth_of_regions_has_no_pooled_classes():
    summary = summarise([score_image(LEFT_RIGHT, [LEFT_RIGHT + 40])])

    assert summary.miou is None
    assert summary.class_iou is None
    assert summary.per_image["miou"].value == 1


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no image was scored"):
        summarise([])
