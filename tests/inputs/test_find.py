"""What lies below a folder and what a pattern matches: links followed, everything that is left out named."""

import os

import pytest

from pipeline.errors import ConfigError
from pipeline.inputs import find
from pipeline.inputs.find import Found, counted, expand_glob, walk
from pipeline.inputs.kinds import is_system


def nothing(name):
    return False


def put(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"12")


def names(found, folder):
    return [entry.url.removeprefix(f"{folder}/") for entry in found.entries]


def test_a_glob_is_in_order_with_bytes_and_versions(tmp_path):
    put(tmp_path, "b.tar", "a.tar", "c.txt")
    found = expand_glob(str(tmp_path), "*.tar", nothing)
    assert [(entry.url.rpartition("/")[2], entry.size) for entry in found.entries] == [("a.tar", 2), ("b.tar", 2)]
    os.utime(tmp_path / "a.tar", (1, 1))
    assert expand_glob(str(tmp_path), "a.*", nothing).entries != found.entries[:1]


def test_a_folder_is_walked_in_order_of_name(tmp_path):
    put(tmp_path, "b/2.jpg", "a.jpg", "b/1.jpg", "b.jpg")
    assert names(walk(str(tmp_path), nothing), tmp_path) == ["a.jpg", "b.jpg", "b/1.jpg", "b/2.jpg"]
    assert walk(str(tmp_path / "none"), nothing) == Found()
    before = walk(str(tmp_path), nothing, links=False)
    assert before.entries == walk(str(tmp_path), nothing).entries


def test_links_to_files_and_folders_are_followed_in_and_out_of_the_folder(tmp_path):
    put(tmp_path, "in/a.jpg", "store/1", "store/deep/2.jpg")
    (tmp_path / "in/b.jpg").symlink_to("../store/1")
    (tmp_path / "in/again.jpg").symlink_to("a.jpg")
    (tmp_path / "in/more").symlink_to(tmp_path / "store")
    (tmp_path / "in/chain").symlink_to("more")
    found = walk(str(tmp_path / "in"), nothing)
    assert names(found, tmp_path / "in") == [
        *("a.jpg", "again.jpg", "b.jpg", "chain/1", "chain/deep/2.jpg", "more/1", "more/deep/2.jpg")
    ]
    assert names(walk(str(tmp_path / "in"), nothing, links=False), tmp_path / "in") == ["a.jpg"]


def test_the_version_of_a_link_is_that_of_what_it_leads_to(tmp_path):
    put(tmp_path, "store/1", "in/x")
    (tmp_path / "in/a.jpg").symlink_to("../store/1")
    before = walk(str(tmp_path / "in"), nothing).entries
    os.utime(tmp_path / "store/1", (1, 1))
    assert walk(str(tmp_path / "in"), nothing).entries != before


def test_circles_end_and_are_named(tmp_path):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a/up").symlink_to("..")
    (tmp_path / "a/self").symlink_to("self")
    (tmp_path / "a/b").symlink_to("../b")
    (tmp_path / "b/a").symlink_to("../a")
    found = walk(str(tmp_path), nothing)
    assert names(found, tmp_path) == ["a/1.jpg", "a/b/2.jpg", "b/2.jpg", "b/a/1.jpg"]
    assert found.others[find.CIRCULAR] == ["a/b/a", "a/self", "a/up", "b/a/b", "b/a/self", "b/a/up"]


def test_folders_that_all_lead_to_each_other_are_refused_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(find, "MAX_PATHS", 50)
    for one in range(12):
        (tmp_path / str(one)).mkdir()
        for other in range(12):
            (tmp_path / str(one) / str(other)).symlink_to(tmp_path / str(other))
    with pytest.raises(ConfigError, match="in more than 50 ways"):
        walk(str(tmp_path), nothing)


def test_what_is_no_file_is_named(tmp_path):
    put(tmp_path, "a.jpg", "._a.jpg", ".git/x.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "below.jpg").symlink_to("a.jpg/b")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = walk(str(tmp_path), is_system)
    assert names(found, tmp_path) == ["a.jpg"]
    assert (found.others[find.SKIPPED], found.others[find.BROKEN], found.others[find.SPECIAL]) == (
        ["._a.jpg", ".git"],
        ["below.jpg", "broken.jpg"],
        ["pipe.jpg"],
    )
    assert found.left_out() == [
        "2 hidden or system files, such as ._a.jpg",
        "2 broken links, such as below.jpg",
        "1 special file: pipe.jpg",
    ]
    assert counted(["x"], "folder") == "1 folder: x"


def test_a_folder_that_cannot_be_listed_is_told_and_not_passed_over(tmp_path, monkeypatch):
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    scan = os.scandir

    def refused(path):
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(ConfigError, match=f"{tmp_path}/b: access refused"):
        walk(str(tmp_path), nothing)
    assert names(expand_glob(str(tmp_path), "a/*", nothing), tmp_path) == ["a/1.jpg"], "of no concern to this one"


def test_a_glob_follows_links_and_names_what_else_it_matches(tmp_path):
    put(tmp_path, "in/a.tar", "store/1", "store/2.tar", "in/._a.tar", "in/x.txt")
    (tmp_path / "in/b.tar").symlink_to("../store/1")
    (tmp_path / "in/gone.tar").symlink_to("nowhere")
    (tmp_path / "in/more").symlink_to("../store")
    (tmp_path / "in/f.tar").mkdir()
    found = expand_glob(str(tmp_path / "in"), "*.tar", is_system)
    assert names(found, tmp_path / "in") == ["a.tar", "b.tar"]
    assert (found.others[find.SKIPPED], found.others[find.BROKEN], found.folders) == (
        ["._a.tar"],
        ["gone.tar"],
        ["f.tar"],
    )
    assert names(expand_glob(str(tmp_path / "in"), "*/*.tar", is_system), tmp_path / "in") == ["more/2.tar"]
    assert names(expand_glob(str(tmp_path), "**/*.tar", is_system), tmp_path) == [
        *("in/a.tar", "in/b.tar", "in/more/2.tar", "store/2.tar")
    ]
    assert [entry.url for entry in find.glob_without_links(f"{tmp_path}/in/*.tar")] == [
        f"{tmp_path}/in/._a.tar",
        f"{tmp_path}/in/a.tar",
    ]


@pytest.mark.parametrize("pattern", ["*.tar", "d?/*.tar", "d[12]/x.tar", "**", "**/x.tar", "d1/**/*.tar", "*/*", "d*"])
def test_patterns_mean_on_a_disk_what_they_mean_on_a_store(tmp_path, pattern):
    put(tmp_path, "a.tar", "b.txt", "d1/x.tar", "d2/x.tar", "d1/deep/y.tar", "d1/deep/deeper/z.tar", "e/x.tar")
    here = names(expand_glob(str(tmp_path), pattern, nothing), tmp_path)
    there = [entry.url for entry in find.glob_without_links(f"{tmp_path}/{pattern}")]
    assert here == [url.removeprefix(f"{tmp_path}/") for url in there]
    assert here or pattern == "d*"


def test_a_pattern_that_makes_no_sense_is_refused_in_one_line(tmp_path):
    with pytest.raises(ConfigError, match="'\\*\\*' can only be an entire path component"):
        expand_glob(str(tmp_path), "a**b", nothing)
