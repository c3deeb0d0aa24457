"""Which shards a run reads: patterns in, pinned shards out."""

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.inputs.shards import pin
from pipeline.storage.filesystem import Entry
from tests.conftest import samples, write_shard


@pytest.fixture
def folder(tmp_path):
    for name in ("a/t-00000.tar", "a/t-00001.tar", "b/t-00000.tar"):
        write_shard(tmp_path / name, samples(1))
    return tmp_path


def names(shards, folder):
    return [shard.url.removeprefix(f"file://{folder}/") for shard in shards]


def test_braces_and_globs_name_shards_in_order(folder):
    both = ["a/t-00000.tar", "a/t-00001.tar"]
    assert names(pin([f"{folder}/a/t-{{00000..00001}}.tar"]), folder) == both
    assert names(pin([f"{folder}/a/*.tar"]), folder) == both
    assert names(pin([f"{folder}/{{b,a}}/t-00000.tar"]), folder) == ["b/t-00000.tar", "a/t-00000.tar"]


def test_overlapping_patterns_name_a_shard_once(folder, monkeypatch):
    monkeypatch.chdir(folder)
    patterns = [f"{folder}/a/*.tar", "a/t-00001.tar", f"file://{folder}/a/../a/t-00000.tar"]
    assert names(pin(patterns), folder) == ["a/t-00000.tar", "a/t-00001.tar"]


def test_shards_of_one_name_in_two_folders_have_two_ids(folder):
    one, other = pin([f"{folder}/{{a,b}}/t-00000.tar"])
    assert one.id != other.id
    assert one.id.startswith("t-00000-")
    assert len(one.id) == len("t-00000-") + 12


def test_an_id_depends_on_the_place_alone(folder):
    [before] = pin([f"{folder}/b/t-00000.tar"])
    write_shard(folder / "b/t-00000.tar", samples(2))
    [after] = pin([f"{folder}/b/t-00000.tar"])
    assert before.id == after.id
    assert (before.size, before.etag) != (after.size, after.etag)


def test_a_list_names_patterns_one_a_line(folder):
    (folder / "list.txt").write_text(f"# ours\n{folder}/a/t-{{00000..00001}}.tar\n\n{folder}/b/*.tar\n")
    assert len(pin([str(folder / "list.txt")])) == 3


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("{folder}/a/nothing.tar", "no such shard"),
        ("{folder}/a/*.zip", "matches no file"),
        ("{folder}/a/t-{{00000..00001.tar", "unbalanced|no such shard"),
        ("{folder}/notes.md", "not a shard"),
        ("{folder}/a", "without images"),
        ("pipe:cat {folder}/a/t-00000.tar", "no storage protocol"),
        ("{folder}/bad.txt", "no storage protocol"),
        ("{folder}/lists.txt", "may not name another list"),
        ("nosuch://b/t.tar", "no storage protocol"),
    ],
)
def test_what_is_no_shard_is_refused_in_one_line(folder, pattern, said):
    (folder / "notes.md").write_text("notes")
    (folder / "bad.txt").write_text("pipe:cat x.tar\n")
    (folder / "lists.txt").write_text(f"{folder}/bad.txt\n")
    with pytest.raises(ConfigError, match=said) as caught:
        pin([pattern.format(folder=folder)])
    assert "\n" not in str(caught.value)


def test_no_shards_at_all_are_refused():
    with pytest.raises(ConfigError, match="no shards given"):
        pin([])


def test_shards_that_only_their_query_tells_apart_are_refused(monkeypatch):
    monkeypatch.setattr("pipeline.storage.filesystem.stat", lambda url: Entry(url, 10, url[-1]))
    with pytest.raises(ConfigError, match="query"):
        pin(["https://h/get.tar?id=1", "https://h/get.tar?id=2"])
    monkeypatch.setattr("pipeline.storage.filesystem.stat", lambda url: Entry(url, 10, "same"))
    [shard] = pin(["https://h/get.tar?sig=1", "https://h/get.tar?sig=2"])
    assert shard.url == "https://h/get.tar"
    assert shard.source == "https://h/get.tar?sig=1"
    assert "sig" not in repr(shard)


def test_a_folder_of_images_is_one_shard(folder):
    for name in ("p/2.JPG", "p/1.png", "p/deep/3.jpg", "p/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12345")
    [shard] = pin([str(folder / "p")])
    assert shard.url == f"file://{folder}/p/"
    assert shard.size == 15
    assert shard.id.startswith("p-")
    os.utime(folder / "p/1.png", (1, 1))
    assert pin([str(folder / "p")])[0].etag != shard.etag
    assert pin([str(folder / "p/")])[0].id == shard.id
