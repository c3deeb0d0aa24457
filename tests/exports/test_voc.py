import numpy as np
from PIL import Image

from diffseg.draw import IGNORED, palette
from diffseg.types import IGNORE
from pipeline.datasets.selection import Selection
from pipeline.exports import annotations
from pipeline.exports import export as hub
from pipeline.exports.export import export
from pipeline.table.label_map import decode_label_map
from tests.support.labelled import at_source, label_map, make_run

NUMBERS = dict(zip("abcdefghi", [*range(6), *range(100, 103)], strict=True))


def test_pillow_reads_the_run_s_ids_and_our_colours(tmp_path):
    out = tmp_path / "out"
    export(make_run(tmp_path), str(out), "png", Selection())

    for key, number in NUMBERS.items():
        labels = at_source(label_map(number))
        with Image.open(out / "SegmentationObject" / f"{key}.png") as picture:
            assert picture.mode == "P"
            assert (np.asarray(picture) == np.where(labels == IGNORE, 255, labels)).all()
            colours = np.asarray(picture.convert("RGB"))
        assert (colours[labels == 3] == palette(4)[3]).all()
        assert (colours[labels == IGNORE] == IGNORED).all()
        with Image.open(out / "JPEGImages" / f"{key}.png") as photo:
            assert photo.getpixel((0, 0)) == (number, 0, 7)


def test_lists_name_each_side_in_order_however_many_parts_there_were(tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setitem(hub.FORMATS, "png", hub.Format(annotations.pngs, part=4, finish=annotations.join_lists))
    selection = Selection(split=0.5)
    export(make_run(tmp_path), str(out), "png", selection)

    for side in ("train", "val"):
        listed = (out / "ImageSets" / "Segmentation" / f"{side}.txt").read_text().splitlines()
        assert listed == [key for key in NUMBERS if selection.side(key) == side] != []


def test_keys_with_folders_keep_them(tmp_path):
    export(make_run(tmp_path, [["cats/1", "dogs/1"]]), str(tmp_path / "out"), "png", Selection())

    assert (tmp_path / "out" / "SegmentationObject" / "dogs" / "1.png").is_file()
    assert (tmp_path / "out" / "ImageSets" / "Segmentation" / "train.txt").read_text() == "cats/1\ndogs/1\n"


def test_more_segments_than_a_byte_holds_are_written_in_two(tmp_path):
    many = np.minimum(np.arange(18 * 24, dtype=np.int32), 299).reshape(18, 24)
    export(make_run(tmp_path, [["a"]], labels=lambda _: many), str(tmp_path / "out"), "png", Selection())

    assert (decode_label_map((tmp_path / "out" / "SegmentationObject" / "a.png").read_bytes()) == many).all()


def test_segments_that_are_not_wanted_belong_to_nobody(tmp_path):
    export(make_run(tmp_path, [["a"]]), str(tmp_path / "out"), "png", Selection(min_score=0.8))

    labels = at_source(label_map(0))
    with Image.open(tmp_path / "out" / "SegmentationObject" / "a.png") as picture:
        assert (np.asarray(picture) == np.where((labels == IGNORE) | (labels > 1), 255, labels)).all()
