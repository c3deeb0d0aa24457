import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from diffseg import AttentionError, DiffSeg, SegmentConfig, segment_attention
from diffseg.config import ResolvedConfig
from diffseg.method.geometry import frame
from diffseg.models.attention import AttentionMaps
from diffseg.segmenter import as_pixels, label
from tests.support import synthetic

GOLDEN = Path(__file__).parent / "golden"
make = runpy.run_path(str(GOLDEN / "make.py"))


@pytest.mark.parametrize("name", make["CASES"])
def test_paper_mode_gives_the_golden_masks(name):
    recorded = np.load(GOLDEN / "masks.npz")
    grid, levels = make["inputs"](name)
    _, _, _, thresholds, per_side, refine = make["CASES"][name]
    config = SegmentConfig(mode="paper", thresholds=thresholds, anchors_per_side=per_side, refine=refine)

    labels, trace = segment_attention(
        [torch.from_numpy(level) for level in levels],
        config,
        recorded[f"{name}/labels"].shape,
        grid=grid,
        return_trace=True,
    )

    assert trace == recorded[f"{name}/counts"].tolist()
    assert (labels.numpy() == recorded[f"{name}/labels"]).mean() >= 0.999


def test_golden_masks_are_what_their_script_makes():
    recorded = np.load(GOLDEN / "masks.npz")
    labels, counts = make["expected"]("one-threshold")

    assert np.array_equal(labels, recorded["one-threshold/labels"])
    assert counts == recorded["one-threshold/counts"].tolist()


GRID = (16, 16)
PAPER = SegmentConfig(mode="paper", thresholds=(0.5, 0.5, 0.5))
FAST = SegmentConfig(mode="fast", thresholds=(0.5, 0.5, 0.5))


def maps_of(*seeds, grid=GRID):
    """A batch of attention maps of three levels."""
    images = [synthetic.attention(synthetic.blobs(grid, 3 + seed % 4, seed), (1, 2, 4), seed) for seed in seeds]
    return [torch.from_numpy(np.stack(level)) for level in zip(*images, strict=True)]


@pytest.mark.parametrize("config", [PAPER, FAST])
def test_a_batch_equals_its_images_to_the_bit(config):
    maps = maps_of(1, 2, 3)

    together = segment_attention(maps, config, (64, 64))

    assert together.shape == (3, 64, 64)
    for image in range(3):
        assert torch.equal(together[image], segment_attention([level[image] for level in maps], config, (64, 64)))


def test_levels_may_come_in_any_order():
    maps = [level[0] for level in maps_of(5)]

    assert torch.equal(segment_attention(maps[::-1], PAPER, (64, 64)), segment_attention(maps, PAPER, (64, 64)))


def test_arrays_do_as_well_as_tensors():
    maps = [level[0] for level in maps_of(5)]

    labels = segment_attention([level.numpy() for level in maps], PAPER, (64, 64))

    assert torch.equal(labels, segment_attention(maps, PAPER, (64, 64)))


def test_thresholds_are_the_published_ones_where_none_are_given():
    maps = [level[0] for level in maps_of(5)]

    _, trace = segment_attention(maps, SegmentConfig(), (64, 64), return_trace=True)

    assert trace == segment_attention(maps, SegmentConfig(thresholds=(1.1, 1.1, 1.1)), (64, 64), return_trace=True)[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_maps_of_any_floating_type_are_taken(dtype):
    maps = maps_of(1, 2)

    labels = segment_attention([level.to(dtype) for level in maps], FAST, (64, 64))

    assert (labels == segment_attention(maps, FAST, (64, 64))).float().mean() > 0.9


def test_known_regions_are_found():
    regions = synthetic.blobs(GRID, 4, seed=9)
    maps = [torch.from_numpy(level) for level in synthetic.attention(regions, (1, 2), seed=9, own=8.0)]

    labels = segment_attention(maps, SegmentConfig(thresholds=(1.0, 1.0, 1.0)), GRID).numpy()

    matched = sum(np.bincount(labels[regions == value]).max() for value in np.unique(regions))
    assert len(np.unique(labels)) == 4
    assert matched / regions.size > 0.95


def test_fast_mode_leaves_no_small_region():
    config = SegmentConfig(thresholds=(0.5, 0.5, 0.5), min_area=0.02)
    for labels in segment_attention(maps_of(*range(6)), config, (80, 80)):
        parts = [ndimage.label(labels == value)[0] for value in labels.unique()]
        assert min(np.bincount(part.ravel())[1:].min() for part in parts) >= 0.02 * 80 * 80


def test_split_components_are_segments_of_their_own():
    labels = segment_attention(
        maps_of(*range(6)), SegmentConfig(thresholds=(0.5, 0.5, 0.5), split_components=True), (80, 80)
    )

    for each in labels:
        assert each.unique().tolist() == list(range(int(each.max()) + 1))
        assert all(ndimage.label(each == value)[1] == 1 for value in each.unique())


def test_zeros_leave_one_segment_in_paper_mode_and_do_no_harm_in_fast_mode():
    side = torch.arange(64) % 8 // 4
    halves_apart = (side[:, None] == side) / 32

    assert not segment_attention([halves_apart], PAPER, (8, 8)).any()
    assert torch.equal(segment_attention([halves_apart], FAST, (8, 8)).flatten(), side.int())


@pytest.mark.parametrize(
    ("maps", "arguments", "message"),
    [
        ([], {}, "empty list"),
        ([torch.eye(5)], {}, "5 cells are no square"),
        ([torch.eye(6)], {"grid": (2, 4)}, "6 cells is no 2 x 4 grid"),
        ([torch.rand(4, 9)], {}, r"\[4, 9\]"),
        ([torch.eye(4), torch.eye(4)], {}, "one map a level"),
        ([torch.eye(16), torch.eye(4)[None]], {}, "all"),
        ([torch.ones(4, 4)], {}, "must be distributions"),
        ([torch.full((4, 4), float("nan"))], {}, "must be distributions"),
        ([torch.tensor([[2.0, -1.0], [0.5, 0.5]])], {"grid": (1, 2)}, "negative"),
        ([torch.zeros(4, 4, dtype=torch.int64)], {}, "floating"),
        ([torch.eye(4)], {"size": (0, 4)}, "size"),
    ],
)
def test_maps_that_make_no_sense_are_refused(maps, arguments, message):
    with pytest.raises(ValueError, match=message):
        segment_attention(maps, PAPER, **{"size": (8, 8)} | arguments)


class Colours:
    """Attends to cells of like colour: a model without weights."""

    device = torch.device("cpu")

    def __init__(self, mode="fast", **options):
        self.config = ResolvedConfig(
            mode=mode, thresholds=(0.5, 0.5), timestep=0, image_size=64, dtype="float32", **options
        )
        self.passes = []

    def batch_size(self):
        return 4

    def attend(self, pixels, *, features=False):
        self.passes.append(len(pixels))
        height, width = pixels.shape[2] // 4, pixels.shape[3] // 4
        levels = []
        for k in (1, 2, 4):
            cells = torch.nn.functional.adaptive_avg_pool2d(pixels, (height // k, width // k)).flatten(2).mT
            levels.append(torch.softmax(-4 * torch.cdist(cells, cells), -1))
        black = pixels.amax((1, 2, 3)) == -1
        levels[0][black] = float("nan")  # black makes no sense to it
        colours = torch.nn.functional.adaptive_avg_pool2d(pixels, (height // 2, width // 2)).flatten(2).mT.clone()
        colours[black] = float("nan")
        vectors = (colours, (height // 2, width // 2)) if features else (None, None)
        return AttentionMaps(tuple(levels), (height, width), *vectors)


def halves(height, width):
    """Left half red, right half green."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 :, 1] = 255
    return image


def test_two_colours_become_two_segments():
    [result] = DiffSeg(Colours()).segment([halves(40, 60)])

    assert result.label_map.dtype == np.int32
    assert np.array_equal(result.label_map, np.repeat([[0] * 30 + [1] * 30], 40, axis=0))
    assert [(each.id, each.area, each.box) for each in result.segments] == [
        (0, 1200, (0, 0, 30, 40)),
        (1, 1200, (30, 0, 30, 40)),
    ]


def test_paper_mode_looks_at_the_centre_square_and_ignores_the_rest():
    [result] = DiffSeg(Colours("paper")).segment([halves(40, 60)])

    assert (result.label_map[:, :10] == -1).all()
    assert (result.label_map[:, 50:] == -1).all()
    assert np.array_equal(result.label_map[:, 10:50], np.repeat([[0] * 20 + [1] * 20], 40, axis=0))
    assert [each.box for each in result.segments] == [(10, 0, 20, 40), (30, 0, 20, 40)]


@pytest.mark.parametrize("mode", ["paper", "fast"])
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (7, 5), (64, 64), (90, 200)])
def test_any_size_is_labelled_in_its_own_frame(mode, size):
    image = np.random.default_rng(0).integers(1, 256, (*size, 3), dtype=np.uint8)

    [result] = DiffSeg(Colours(mode, output_size="source")).segment([image])

    assert result.label_map.shape == size
    ids, areas = np.unique(result.label_map[result.label_map >= 0], return_counts=True)
    assert [each.id for each in result.segments] == ids.tolist() == list(range(len(ids)))
    assert [each.area for each in result.segments] == areas.tolist()
    assert all(0 <= each.score <= 1 for each in result.segments)
    assert (result.quality is None) == (len(ids) < 2)
    assert result.quality is None or 0 <= result.quality <= 1


@pytest.mark.parametrize("mode", ["paper", "fast"])
@pytest.mark.parametrize("split", [False, True])
def test_a_batch_labelled_in_one_piece_equals_its_images(mode, split):
    """As on a GPU, where images are padded to the most proposals of any."""
    config = ResolvedConfig(
        mode=mode, thresholds=(0.5, 0.5, 0.5), timestep=0, image_size=128, dtype="float32", split_components=split
    )
    maps = maps_of(0, 3, 7, 5)
    frames = [frame(size, config) for size in [(50, 50), (128, 96), (30, 90), (64, 64)]]

    together = label(AttentionMaps(tuple(maps), GRID), frames, config)

    for i, planned in enumerate(frames):
        [alone] = label(AttentionMaps(tuple(level[i : i + 1] for level in maps), GRID), [planned], config)
        assert np.array_equal(together[i].label_map, alone.label_map)
        assert [(each.area, each.box) for each in together[i].segments] == [
            (each.area, each.box) for each in alone.segments
        ]
        assert [each.score for each in together[i].segments] == pytest.approx([each.score for each in alone.segments])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gpu_labels_as_a_processor_does(dtype):
    config = SegmentConfig(thresholds=(0.5, 0.5, 0.5), dtype=dtype)
    maps = maps_of(*range(4))

    here = segment_attention(maps, config, (256, 256))
    there = segment_attention([level.cuda() for level in maps], config, (256, 256)).cpu()

    assert (here == there).float().mean() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("output_size", "shape"), [(1024, (768, 1024)), ("source", (6000, 8000))])
@pytest.mark.parametrize("mode", ["paper", "fast"])
def test_a_photo_of_48_megapixels_is_labelled(mode, output_size, shape):
    [result] = DiffSeg(Colours(mode, output_size=output_size)).segment([halves(6000, 8000)])

    assert result.label_map.shape == shape
    half = shape[0] * (min(shape) if mode == "paper" else shape[1]) // 2
    assert [each.area for each in result.segments] == pytest.approx([half, half], rel=0.01)


def test_the_longer_side_of_a_label_map_is_bounded():
    [result] = DiffSeg(Colours(output_size=32)).segment([halves(40, 80)])

    assert result.label_map.shape == (16, 32)
    assert result.segments[1].box == (16, 0, 16, 16)


def test_images_of_many_sizes_come_back_in_the_order_given():
    sizes = [(64, 64), (40, 160), (64, 64), (160, 40), (40, 160), (64, 64)]
    model = Colours()

    results = DiffSeg(model, batch_size=2).segment([halves(*size) for size in sizes])

    assert [result.label_map.shape for result in results] == sizes
    assert sorted(model.passes) == [1, 1, 2, 2]


def test_quality_is_the_mean_score_by_area():
    image = halves(40, 60)
    image[:, 45:] = 255

    [result] = DiffSeg(Colours()).segment([image])

    total = sum(each.area * each.score for each in result.segments)
    assert result.quality == pytest.approx(total / 2400)
    assert len(result.segments) == 3


def test_a_picture_of_one_colour_is_one_segment_and_has_no_quality():
    [result] = DiffSeg(Colours()).segment([np.full((32, 32, 3), 200, np.uint8)])

    [segment] = result.segments
    assert segment.score == 1.0
    assert result.quality is None


def test_an_image_the_model_cannot_make_sense_of_is_named_and_the_others_can_go_on():
    images = [halves(64, 64), np.zeros((64, 64, 3), np.uint8), halves(40, 160), np.zeros((40, 160, 3), np.uint8)]
    segmenter = DiffSeg(Colours(), batch_size=4)

    with pytest.raises(AttentionError, match=r"\[1, 3\]") as caught:
        segmenter.segment(images)

    assert caught.value.images == (1, 3)
    rest = segmenter.segment([image for i, image in enumerate(images) if i not in caught.value.images])
    assert [len(result.segments) for result in rest] == [2, 2]
    assert all(result.quality is not None and math.isfinite(result.quality) for result in rest)


def test_several_thresholds_are_compared_in_one_pass_and_give_what_each_gives_alone():
    images, thresholds = [halves(40, 60), halves(64, 64), halves(40, 60)], [(0.01, 0.01), (0.5, 0.5), (99.0, 99.0)]
    model = Colours()

    compared = DiffSeg(model).compare(images, thresholds)

    assert model.passes == [3]
    for results, threshold in zip(compared, thresholds, strict=True):
        model.config = ResolvedConfig(thresholds=threshold, timestep=0, image_size=64, dtype="float32")
        alone = DiffSeg(model).segment(images)
        assert [(each.label_map.tobytes(), each.segments, each.quality) for each in results] == [
            (each.label_map.tobytes(), each.segments, each.quality) for each in alone
        ]
    assert len({len(results[0].segments) for results in compared}) > 1


def test_pil_images_of_any_mode_are_taken_as_colour():
    image = Image.fromarray(halves(40, 60))
    expected = DiffSeg(Colours()).segment([image.convert("RGBA"), image.convert("P"), image])

    assert all(np.array_equal(each.label_map, expected[2].label_map) for each in expected)


def test_quality_mode_splits_by_features_and_names_images_without_any():
    segmenter = DiffSeg(Colours("quality"))
    results = segmenter.segment([halves(40, 60), halves(64, 64)])
    assert [len(result.segments) for result in results] == [2, 2]
    assert np.array_equal(
        results[1].label_map == results[1].label_map[0, 0], np.repeat([[True] * 32 + [False] * 32], 64, 0)
    )
    with pytest.raises(AttentionError) as caught:
        segmenter.segment([halves(40, 60), np.zeros((40, 60, 3), np.uint8)])
    assert caught.value.images == (1,)


def test_attention_alone_has_no_quality_mode():
    with pytest.raises(ValueError, match="mode 'quality' needs the features of cells"):
        segment_attention([np.full((16, 16), 1 / 16)], SegmentConfig(mode="quality"), (8, 8))


def test_no_images_give_no_results():
    assert DiffSeg(Colours()).segment([]) == []


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("cat.jpg", "got str"),
        (np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3), np.float32), "got float32"),
        (np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        as_pixels(image)


def test_an_impossible_batch_size_is_refused():
    with pytest.raises(ValueError, match="got 0"):
        DiffSeg(Colours(), batch_size=0)
