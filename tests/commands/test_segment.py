"""`diffseg segment`: a result for every photo, none in the place of another, none of a result."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import diffseg
from jobs import segment
from jobs.shared import cli
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.table.label_map import decode_label_map
from tests.conftest import jpeg


class Fake(FakeSegmenter):
    """In the place of a model that is loaded."""

    config = diffseg.SegmentConfig(thresholds=(1.0,) * 3)

    @classmethod
    def from_pretrained(cls, *_):
        return cls()


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setattr(diffseg, "DiffSeg", Fake)


def run(*images, output="out"):
    return cli.run(["segment", *map(str, images), "--model", "tiny", "--output", str(output)])


def photo(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(jpeg(number))
    return path


def widths(folder):
    """How much of each label map is its first segment: which photo it is of."""
    return {
        path.name: int((decode_label_map(path.read_bytes()) == 0)[0].sum()) for path in folder.glob("*.labels*.png")
    }


@pytest.mark.parametrize(
    ("names", "results"),
    [
        (["a/x.jpg", "b/x.png"], ["x.labels.png", "x-2.labels.png"]),
        (["a/x.jpg", "b/x.jpg", "c/x.jpg"], ["x.labels.png", "x-2.labels.png", "x-3.labels.png"]),
        (["x.jpg", "x.jpeg"], ["x.labels.png", "x-2.labels.png"]),
        (["a/x.jpg", "b/X.jpg"], ["x.labels.png", "X-2.labels.png"]),  # one name on some disks
        (["a/\u00e9.jpg", "b/e\u0301.jpg"], ["\u00e9.labels.png", "e\u0301-2.labels.png"]),
        (["x.jpg", "x-2.jpg", "a/x.jpg"], ["x.labels.png", "x-2.labels.png", "x-3.labels.png"]),
        (["x.1.jpg", "x.2.jpg"], ["x.1.labels.png", "x.2.labels.png"]),
    ],
)
def test_photos_of_one_name_have_results_of_their_own(tmp_path, names, results):
    photos = [photo(tmp_path / name, number) for number, name in enumerate(names)]
    assert run(*photos, output=tmp_path / "out") == 0
    assert widths(tmp_path / "out") == {name: 4 + number for number, name in enumerate(results)}
    assert len(list((tmp_path / "out").glob("*.overlay.png"))) == len(photos)


def test_results_of_an_earlier_run_stay(tmp_path):
    first, other = photo(tmp_path / "a/x.jpg", 1), photo(tmp_path / "b/x.jpg", 2)
    out = tmp_path / "out"
    assert run(first, output=out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(first, output=out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before, "the same once more is the same"
    assert run(other, first, output=out) == 0
    assert widths(out) == {"x.labels.png": 5, "x-2.labels.png": 6}
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_file_of_somebody_else_is_not_written_over(tmp_path):
    (tmp_path / "x.OVERLAY.png").write_bytes(b"mine")
    (tmp_path / "y.labels.png").mkdir()
    assert run(photo(tmp_path / "x.jpg", 1), photo(tmp_path / "y.jpg", 2), output=tmp_path) == 0
    assert (tmp_path / "x.OVERLAY.png").read_bytes() == b"mine"
    assert (tmp_path / "x-2.labels.png").is_file()
    assert (tmp_path / "x-2.overlay.png").is_file()
    assert (tmp_path / "y-2.labels.png").is_file()


def test_results_are_no_photos_when_the_folder_is_segmented_again(tmp_path, capsys):
    photos = [photo(tmp_path / "x.jpg", 1), photo(tmp_path / "y.jpg", 2)]
    assert run(*photos, output=tmp_path) == 0
    there = sorted(tmp_path.iterdir())
    assert run(*there, output=tmp_path) == 0
    assert sorted(tmp_path.iterdir()) == there
    assert "4 results of `diffseg segment` among the images are not labelled" in capsys.readouterr().err
    assert run(tmp_path / "x.labels.png", output=tmp_path) == 2
    assert "x.labels.png: a result of `diffseg segment`, no photo" in capsys.readouterr().err


def test_both_files_of_a_result_or_none(tmp_path, monkeypatch):
    opened = Path.open

    def full(path, mode="r", *rest):
        if path.name.endswith("overlay.png") and "x" in mode:
            raise OSError(28, "No space left on device")
        return opened(path, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    assert run(photo(tmp_path / "x.jpg", 1), output=tmp_path / "out") == 3
    assert list((tmp_path / "out").iterdir()) == []


def test_what_somebody_else_writes_meanwhile_is_left_as_it_is(tmp_path):
    results = segment._Results(tmp_path)
    (tmp_path / "x.overlay.png").write_bytes(b"theirs")
    paths = results.add("x", {"labels.png": b"1", "overlay.png": b"2"})
    assert [path.name for path in paths] == ["x-2.labels.png", "x-2.overlay.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*("x-2.labels.png", "x-2.overlay.png", "x.overlay.png")]


def test_a_folder_is_refused_in_one_line(tmp_path, capsys):
    photo(tmp_path / "in/x.jpg", 1)
    assert run(tmp_path / "in") == 2
    assert f"{tmp_path}/in: a folder; name its images, for example {tmp_path}/in/*.jpg" in capsys.readouterr().err


def test_two_photos_of_one_stem_from_the_field(tmp_path, cases):
    shutil.copytree(cases / "c6_two_photos_of_one_stem", tmp_path / "in")
    assert run(tmp_path / "in/a/x.jpg", tmp_path / "in/b/x.png", output=tmp_path / "out") == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["x-2.labels.png", "x-2.overlay.png", "x.labels.png", "x.overlay.png"]
    with Image.open(tmp_path / "in/b/x.png") as image:
        assert decode_label_map((tmp_path / "out/x-2.labels.png").read_bytes()).shape == image.size[::-1]


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."), 3, "1.jpg: CUDA out of memory"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), 2, "install a torch"),
        (RuntimeError("Triton Error [CUDA]: device-side assert triggered"), 4, "stopped: device failed: RuntimeError"),
    ],
)
def test_a_device_that_fails_is_told_in_one_line(tmp_path, monkeypatch, capsys, error, code, said):
    def failing(self, images):
        raise error

    monkeypatch.setattr(Fake, "segment", failing)
    assert run(photo(tmp_path / "1.jpg", 1), output=tmp_path / "out") == code
    assert said in capsys.readouterr().err.splitlines()[-1]
