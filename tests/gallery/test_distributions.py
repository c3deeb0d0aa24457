from typing import Any

import pytest

from pipeline.gallery.statistics import Distributions


def row(status: str = "ok", quality: float | None = 0.5, areas: tuple[int, ...] = (1, 1)) -> dict[str, Any]:
    segments = [{"area": area} for area in areas] if status == "ok" else None
    return {"status": status, "quality": quality if status == "ok" else None, "segments": segments}


def counted(*rows: dict[str, Any]) -> Distributions:
    counts = Distributions()
    for one in rows:
        counts.add(one)
    return counts


def test_means_are_of_labelled_images():
    counts = counted(row(quality=0.2, areas=(1,)), row(quality=0.6, areas=(1, 2, 3)), row("undecodable"))

    assert counts.samples == 3
    assert counts.mean_quality == pytest.approx(0.4)
    assert counts.mean_segments == 2


def test_statuses_begin_with_ok_then_the_commonest():
    counts = counted(row("no_image"), row("undecodable"), row("undecodable"), row())

    assert counts.by_status() == (("ok", 1), ("undecodable", 2), ("no_image", 1))


def test_every_value_falls_into_a_bin_the_ends_too():
    counts = counted(row(quality=0.0, areas=(1, 10**9)), row(quality=1.0, areas=(5,)))

    quality, segments, areas = counts.histograms()
    assert (quality.counts[0], quality.counts[-1], sum(quality.counts)) == (1, 1, 2)
    assert segments.counts == (0, 1, 1)
    assert (areas.counts[0], areas.counts[-1], sum(areas.counts)) == (1, 2, 3)


def test_images_of_one_segment_are_counted_beside_the_mean_quality_of_the_others():
    single = row(quality=None, areas=(9,))
    mixed, alone = counted(single, row(quality=0.6)), counted(single)
    assert (mixed.mean_quality, alone.mean_quality) == (0.6, None)
    assert mixed.histograms()[0].note == "mean 0.600; 50% of the images are one segment, which has none"
    assert alone.histograms()[0].note == "100% of the images are one segment, which has none"


def test_many_segments_share_wider_bins():
    _, segments, _ = counted(row(areas=(1,) * 500), row(areas=(1,))).histograms()

    assert len(segments.counts) <= 30
    assert (segments.counts[0], segments.counts[-1]) == (1, 1)
    assert segments.edges[-1] > 500


def test_a_histogram_has_an_edge_and_a_tick_more_than_bins():
    for histogram in counted(row()).histograms():
        assert len(histogram.edges) == len(histogram.ticks) == len(histogram.counts) + 1


def test_nothing_counted_says_so():
    quality, _, _ = counted().histograms()

    assert quality.note == "no labelled image"
    assert Distributions().mean_segments is None
