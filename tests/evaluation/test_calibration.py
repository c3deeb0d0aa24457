"""Calibration: the measures against literal ones, the fit on columns whose meaning is known."""

import numpy as np
import pytest

from diffseg.evaluation.calibration import auroc, best_ious, calibration_error, fit, out_of_fold
from diffseg.prior import geometry
from diffseg.types import IGNORE


def made(count: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of which the first two decide the IoU, with noise; the third is noise, the fourth constant."""
    random = np.random.default_rng(seed)
    columns = np.hstack([random.normal(0, (1, 5, 1), (count, 3)), np.ones((count, 1))])
    linear = columns[:, 0] + 0.1 * columns[:, 1]
    ious = (1 / (1 + np.exp(-linear)) + random.normal(0, 0.05, count)).clip(0, 1)
    return columns, ious, np.repeat(np.arange(count // 10), 10)


def test_predictions_have_the_mean_of_the_iou_wherever_one_looks():
    columns, ious, _ = made()
    others, true, _ = made(seed=1)
    predicted = fit(columns, ious).predict(others)
    assert calibration_error(predicted, true) < 0.01
    for low, high in ((0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1)):
        there = (predicted >= low) & (predicted < high)
        assert predicted[there].mean() == pytest.approx(true[there].mean(), abs=0.015)


def test_predictions_rise_with_what_raises_the_iou():
    columns, ious, _ = made()
    rising = np.zeros((50, 4))
    rising[:, 0] = np.linspace(-4, 4, 50)
    predicted = fit(columns, ious).predict(rising)
    assert (np.diff(predicted) >= 0).all()
    assert 0 <= predicted[0] < 0.1
    assert 0.9 < predicted[-1] <= 1


def test_segments_are_predicted_from_other_images_only():
    columns, ious, images = made(300)
    before = out_of_fold(columns, ious, images)
    changed = np.where(images == 7, 1 - ious, ious)
    assert np.array_equal(out_of_fold(columns, changed, images)[images == 7], before[images == 7])
    assert not np.array_equal(out_of_fold(columns, changed, images), before)
    with pytest.raises(ValueError, match="at least two images are needed to predict one from the others, got 1"):
        out_of_fold(columns[:10], ious[:10], images[:10])


def test_one_segment_and_equal_columns_give_the_mean_and_none_is_refused():
    assert fit(np.ones((1, 3)), np.array([0.4])).predict(np.zeros((2, 3))) == pytest.approx([0.4, 0.4])
    assert fit(np.ones((4, 3)), np.array([0.2, 0.4, 0.6, 0.8])).predict(np.ones((1, 3))) == pytest.approx([0.5])
    with pytest.raises(ValueError, match="no segment whose IoU is known"):
        fit(np.ones((0, 3)), np.ones(0))


def test_auroc_is_the_share_of_pairs_in_order():
    random = np.random.default_rng(3)
    scores, positive = random.integers(0, 9, 80).astype(float), random.random(80) < 0.3
    pairs = [(p > n) + (p == n) / 2 for p in scores[positive] for n in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(auroc(scores, np.ones(80, bool)))


def test_the_calibration_error_is_the_mean_gap_of_ten_bins():
    predicted = np.linspace(0, 1, 100)
    assert calibration_error(predicted, predicted) == pytest.approx(0)
    assert calibration_error(predicted, predicted - 0.25) == pytest.approx(0.25)
    assert np.isnan(calibration_error(np.ones(0), np.ones(0)))


def test_best_ious_are_those_of_a_literal_search():
    random = np.random.default_rng(4)
    for _ in range(20):
        prediction = random.integers(IGNORE, 5, (9, 13)).repeat(3, 0).repeat(2, 1)
        truths = [random.integers(IGNORE, 4, (9, 13)).repeat(3, 0).repeat(2, 1) for _ in range(3)]
        literal = np.empty((3, 6))
        for n, truth in enumerate(truths):
            for segment in range(6):  # 5 is never there
                own, known = prediction == segment, truth >= 0
                regions = [truth == region for region in range(4)]
                ious = [(own & each).sum() / ((own & known) | each).sum() for each in regions if each.any()]
                literal[n, segment] = max(ious) if (own & known).any() else np.nan
        assert best_ious(prediction, truths, 6) == pytest.approx(literal.mean(0), nan_ok=True)


def test_geometry_is_that_of_shapes_drawn_by_hand():
    boxes = np.array([[0, 0, 8, 4], [8, 0, 2, 4], [2, 1, 2, 2]])
    shapes = geometry(np.array([28, 8, 4]), boxes)
    assert np.exp(shapes[:, 0]) == pytest.approx([0.7, 0.2, 0.1])
    assert shapes[:, 1] == pytest.approx(np.log([64 / 28, 16 / 8, 1]))
    assert shapes[:, 2] == pytest.approx([0.75, 0.75, 0])
    moved = geometry(np.array([28, 8, 4]), boxes + np.array([5, 3, 0, 0]))  # as in the crop of `paper` mode
    assert np.array_equal(moved, shapes)
    assert geometry(np.zeros(0, int), np.zeros((0, 4), int)).shape == (0, 3)
    assert geometry(np.array([32]), boxes[:1])[0] == pytest.approx([0, np.log(2), 1])
