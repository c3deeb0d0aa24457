import numpy as np
import pytest

from diffseg.draw import IGNORED, PALETTE_SIZE, colorize, outlines, overlay, palette, resize_labels
from diffseg.types import IGNORE
from infra.docs.palette import distinct_colors, perceived

TWO_HALVES = np.array([[0, 0, 1, 1]] * 4)


def test_the_palette_is_what_its_rule_gives():
    assert np.array_equal(palette(), distinct_colors())


@pytest.mark.parametrize("eye", [0, 1, 2, 3], ids=["usual", "protanopia", "deuteranopia", "tritanopia"])
def test_fifty_colors_are_distinct_to_every_eye(eye):
    seen = perceived(palette(50))[eye]

    apart = np.linalg.norm(seen[:, None] - seen[None, :], axis=-1)

    assert apart[np.triu_indices(50, k=1)].min() > 0.035  # 0.02 is just noticeable


def test_red_and_green_of_equal_lightness_are_the_same_without_the_green_cone():
    usual, _, deuteranopia, _ = perceived(np.array([[200, 80, 60], [122, 118, 58]]))

    assert np.linalg.norm(usual[0] - usual[1]) > 3 * np.linalg.norm(deuteranopia[0] - deuteranopia[1])


def test_the_first_colors_are_further_apart_than_the_last():
    few, many = perceived(palette(8))[0], perceived(palette(64))[0]

    def least(seen):
        apart = np.linalg.norm(seen[:, None] - seen[None, :], axis=-1)
        return apart[np.triu_indices(len(seen), k=1)].min()

    assert least(few) > 1.5 * least(many)


def test_a_longer_palette_begins_as_the_shorter_one():
    assert np.array_equal(palette(100)[:20], palette(20))
    assert np.array_equal(palette(100)[PALETTE_SIZE:], palette(100 - PALETTE_SIZE))


def test_every_segment_has_its_color_and_ignored_pixels_are_grey():
    picture = colorize(np.array([[0, 1], [IGNORE, 70]]))

    assert np.array_equal(picture[0], palette(2))
    assert tuple(picture[1, 0]) == IGNORED
    assert np.array_equal(picture[1, 1], palette(71)[70])


def test_a_map_without_any_segment_is_grey_all_over():
    assert (colorize(np.full((2, 3), IGNORE)) == IGNORED).all()


def test_the_outline_runs_along_one_side_of_a_border():
    assert np.array_equal(outlines(TWO_HALVES), np.array([[0, 1, 0, 0]] * 4, dtype=bool))


def test_a_wider_outline_covers_both_sides():
    assert np.array_equal(outlines(TWO_HALVES, width=2), np.array([[1, 1, 1, 0]] * 4, dtype=bool))


def test_a_flat_map_has_no_outline():
    assert not outlines(np.zeros((3, 3), dtype=int)).any()


def test_labels_are_enlarged_without_new_ids_or_shifts():
    enlarged = resize_labels(np.array([[3, 7]]), (2, 6))

    assert enlarged.tolist() == [[3, 3, 3, 7, 7, 7]] * 2


def test_labels_shrink_to_the_id_under_each_centre():
    assert resize_labels(np.arange(9).reshape(3, 3), (1, 1)).tolist() == [[4]]


def test_an_overlay_has_the_size_of_the_photo_and_tints_it():
    photo = np.full((40, 60, 3), 100, np.uint8)

    picture = overlay(photo, np.array([[0, 1]]), opacity=0.5)

    assert picture.shape == photo.shape
    assert picture[0, 0].tolist() == ((100 + palette(1)[0].astype(int) + 1) // 2).tolist()
    assert (picture[:, 29] == 255).all()  # the border, one pixel wide, where the segments meet
    assert not (picture[:, 28] == 255).all()


def test_an_overlay_leaves_ignored_pixels_as_they_are():
    photo = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)

    assert np.array_equal(overlay(photo, np.full((4, 4), IGNORE)), photo)


def test_outlines_on_a_large_photo_stay_visible():
    picture = overlay(np.zeros((100, 2048, 3), np.uint8), np.array([[0, 1]]), opacity=0.0)

    assert int((picture[50] == 255).all(-1).sum()) >= 4
