import dataclasses
import json
import pickle

import pyarrow.parquet as pq
import pytest
from ray import cloudpickle

from jobs.shared import cli
from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError, ShardChanged
from pipeline.exports import annotations
from pipeline.exports import export as hub
from pipeline.exports.export import export
from pipeline.storage.names import is_file_name, unit_hash
from tests.support.labelled import make_run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def document(out, side="train", part=0):
    alone = out / "annotations" / f"instances_{side}.json"
    return json.loads((alone if alone.exists() else alone.with_stem(f"{alone.stem}_{part:05}")).read_text())


def keys(out, **place):
    return [image["key"] for image in document(out, **place)["images"]]


def run(tmp_path, *flags):
    arguments = ["export", str(tmp_path / "run"), "--format", "coco-segments", "--output", str(tmp_path / "out")]
    return cli.run([*arguments, *flags])


def test_the_command_says_what_it_wrote(tmp_path, out, capsys):
    make_run(tmp_path, failed={(0, 1): "undecodable", (1, 2): "no_image"})

    assert run(tmp_path, "--json") == 0

    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 7
    assert said["left_out"] == {"without labels: undecodable": 1, "without labels: no_image": 1}
    assert said["missing"] == []
    assert keys(out) == list("acdefgh")


@pytest.mark.parametrize("kind", hub.FORMATS)
def test_every_export_says_the_models_licence_where_its_run_knows_it(kind, tmp_path, out):
    ledger = make_run(tmp_path / "new", [["a"]], model="s3://private/models/sd15", licence="creativeml-openrail-m")
    notice = {"model": "sd15", "model_licence": "creativeml-openrail-m"}

    export(ledger, str(out), kind, Selection())
    export(make_run(tmp_path / "old", [["a"]]), str(out.with_name("before")), kind, Selection())

    assert export(ledger, str(out), kind, Selection()).idle
    own, old = (json.loads((folder / "export.json").read_bytes()) for folder in (out, out.with_name("before")))
    assert own.items() >= notice.items()
    assert own.keys() - old.keys() == notice.keys()
    for path in out.glob("annotations/*.json"):
        assert json.loads(path.read_bytes())["info"] == notice
        assert "info" not in json.loads((out.with_name("before") / "annotations" / path.name).read_bytes())
    for path in out.glob("data/*.parquet"):
        said = json.loads(pq.read_schema(path).metadata[b"huggingface"])
        assert said.pop("info").keys() == {"features"}
        assert said == notice


def test_image_ids_do_not_depend_on_what_was_selected(tmp_path, out):
    export(make_run(tmp_path), str(out), "coco-segments", Selection(where="key in ['c', 'g']"))

    assert {image["key"]: image["id"] for image in document(out)["images"]} == {"c": 3, "g": 7}


def test_a_condition_and_a_limit_choose_rows_in_order(tmp_path, out):
    done = export(make_run(tmp_path), str(out), "coco-segments", Selection(where="quality > 0.15", limit=3))

    assert keys(out) == ["c", "d", "e"]
    assert done.state.tally.images == 3


def test_a_split_is_decided_by_the_key_alone(tmp_path, out):
    names = [f"key{number}" for number in range(40)]
    export(make_run(tmp_path, [names[:25], names[25:]]), str(out), "coco-segments", Selection(split=0.7))

    assert keys(out) == [name for name in names if unit_hash(name) < 0.7]
    assert keys(out, side="val") == [name for name in names if unit_hash(name) >= 0.7]
    assert 0 < len(keys(out, side="val")) < 25
    ids = [a["id"] for side in ("train", "val") for a in document(out, side=side)["annotations"]]
    assert len(set(ids)) == len(ids)
    assert sorted(path.name for path in (out / "images" / "val").iterdir()) == sorted(
        f"{name}.png" for name in keys(out, side="val")
    )


def test_a_share_of_the_keys_is_about_that_share_of_hashes():
    assert 0.93 < sum(unit_hash(str(number)) < 0.95 for number in range(2000)) / 2000 < 0.97


@pytest.mark.parametrize("key", ["a", "cats/7", "ü/…", "a..b", "a b", "-", "./a", "././a/b"])
def test_a_key_may_name_a_file_below_the_export(key):
    assert is_file_name(key)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "..",
        "../a",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "./../a",
        ".//../a",
        "a\0b",
        "a\nb",
        "..\\a",
        "C:\\a",
        "C:a",
        "x" * 300,
    ],
)
def test_a_key_that_leads_elsewhere_names_no_file(key):
    assert not is_file_name(key)


def test_a_sample_whose_key_is_no_file_name_has_a_made_one(tmp_path, out):
    ledger = make_run(tmp_path, [["a", "x/../../b", "c"]])
    done = export(ledger, str(out), "coco-segments", Selection())

    assert keys(out) == ["a", "x/../../b", "c"]
    assert done.state.tally.left_out == {}
    made = f"x_b_{next(iter(ledger.shards))}_1.png"
    assert sorted(path.name for path in (out / "images" / "train").iterdir()) == sorted(["a.png", "c.png", made])
    assert not (tmp_path / "b.png").exists()


def test_something_else_in_the_place_of_what_is_exported_is_refused(tmp_path, out, capsys):
    ledger = make_run(tmp_path, [["a", "b"]])
    export(ledger, str(out), "coco-segments", Selection())
    (out / "_SUCCESS").unlink()
    (out / "_export" / "000000.json").unlink()
    for name in ("images/train/b.png", "annotations/instances_train.json"):
        sound = (out / name).read_bytes()
        for other in (sound[:-1], sound[:-1] + bytes([sound[-1] ^ 1]), b""):
            (out / name).write_bytes(other)
            assert run(tmp_path) == 2
            assert f"{name}: something else is here already" in capsys.readouterr().err
        (out / name).unlink()
        (out / name).mkdir()
        assert run(tmp_path) == 2
        assert name in capsys.readouterr().err
        (out / name).rmdir()
        (out / name).write_bytes(sound)
    assert run(tmp_path) == 0


def test_shards_that_were_packed_from_within_their_folder_are_exported_by_plain_names(tmp_path, out):
    ledger = make_run(tmp_path, [["./a", "./cats/b"], ["a"]])
    one, other = ledger.shards

    done = export(ledger, str(out), "coco-segments", Selection())

    assert done.state.tally.left_out == {}
    assert [image["file_name"] for image in document(out)["images"]] == [
        f"a_{one}_0.png",
        "cats/b.png",
        f"a_{other}_0.png",
    ]


def test_samples_that_share_a_key_have_files_of_their_own(tmp_path, out):
    ledger = make_run(tmp_path, [["a", "b"], ["b", "c"]])
    one, other = ledger.shards

    export(ledger, str(out), "coco-segments", Selection())

    names = ["a.png", f"b_{one}_1.png", f"b_{other}_0.png", "c.png"]
    assert [image["file_name"] for image in document(out)["images"]] == names
    assert sorted(path.name for path in (out / "images" / "train").iterdir()) == sorted(names)


def test_what_an_unfinished_run_lacks_is_named(tmp_path, out, capsys):
    make_run(tmp_path, [list("abc"), list("defghi")], leave_out=(1,))

    assert run(tmp_path) == 0

    said = capsys.readouterr()
    assert "not finished" in said.err
    assert "s-1.tar: window 1 to its end" in said.err
    assert keys(out) == list("abcdefg")


@pytest.mark.parametrize("break_at", range(3))
def test_an_export_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path, out, monkeypatch, break_at):
    monkeypatch.setitem(hub.FORMATS, "coco-segments", hub.Format(annotations.segments, part=4))
    ledger = make_run(tmp_path)
    export(ledger, str(tmp_path / "whole"), "coco-segments", Selection(split=0.5))

    def stop(state):
        if state.parts == break_at + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ledger, str(out), "coco-segments", Selection(split=0.5), tick=stop)
    if break_at < 2:
        (out / "_export" / f"{break_at:06}.json").unlink()  # as if it had stopped just before its part was recorded
    done = export(ledger, str(out), "coco-segments", Selection(split=0.5))

    assert content(out) == content(tmp_path / "whole")
    assert len(list((out / "_export").iterdir())) == 3
    assert done.state.tally.images == 9


@pytest.mark.parametrize("kind", hub.FORMATS)
def test_parts_need_nothing_of_each_other(tmp_path, out, monkeypatch, kind):
    """Each of them, the last one first, by a function that travelled as bytes."""
    monkeypatch.setitem(hub.FORMATS, kind, dataclasses.replace(hub.FORMATS[kind], part=4))
    ledger = make_run(tmp_path, failed={(0, 1): "undecodable"})
    selection = Selection(where="quality > 0.05", split=0.5, limit=6)
    first = export(ledger, str(tmp_path / "whole"), kind, selection)

    def parallel_map(function, parts):
        function = pickle.loads(cloudpickle.dumps(function))
        return reversed([function(pickle.loads(pickle.dumps(part))) for part in reversed(list(parts))])

    done = export(ledger, str(out), kind, selection, parallel_map=parallel_map)

    assert content(out) == content(tmp_path / "whole")
    assert done.state == first.state
    assert (done.state.tally.images, done.state.parts) == (6, 3)
    assert done.state.tally.left_out == {"without labels: undecodable": 1, "not asked for": 2}


def test_a_machine_that_does_not_see_the_output_says_so(tmp_path, out):
    def elsewhere(function, parts):
        (out / "export.json").unlink()
        return map(function, parts)

    with pytest.raises(ConfigError, match="a machine of the cluster does not see"):
        export(make_run(tmp_path), str(out), "png", Selection(), parallel_map=elsewhere)


def test_the_same_export_again_has_nothing_to_do(tmp_path, out):
    ledger = make_run(tmp_path)
    first = export(ledger, str(out), "coco-segments", Selection())
    before = content(out)

    again = export(ledger, str(out), "coco-segments", Selection())

    assert (first.idle, again.idle) == (False, True)
    assert again.state == first.state
    assert content(out) == before


def test_another_export_is_refused_with_what_differs(tmp_path, out):
    ledger = make_run(tmp_path)
    export(ledger, str(out), "coco-segments", Selection())

    with pytest.raises(ConfigError, match=r"another export \(min_score: 0.0 there, 0.5 here\)"):
        export(ledger, str(out), "coco-segments", Selection(min_score=0.5))


def test_an_export_of_a_run_that_has_grown_is_another(tmp_path, out):
    ledger = make_run(tmp_path)
    last = list(ledger.windows())[-1].name
    data = ledger.store.get(last)
    (tmp_path / "run" / last).unlink()
    export(ledger, str(out), "coco-segments", Selection())
    ledger.store.put_new(last, data)

    with pytest.raises(ConfigError, match=r"windows: 2 .* there, 3 .* here"):
        export(ledger, str(out), "coco-segments", Selection())


def test_a_folder_with_other_things_in_it_is_refused(tmp_path, out):
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match="no export: use another --output"):
        export(make_run(tmp_path), str(out), "coco-segments", Selection())


@pytest.mark.parametrize(
    ("flags", "answer"),
    [
        (["--format", "coco"], "possible are coco-segments"),
        (["--where", "qualty > 1"], "possible are key"),
        (["--min-area", "1.5"], "--min-area is a share"),
        (["--min-score", "7"], "--min-score lies in"),
        (["--limit", "0"], "--limit is a number"),
        (["--split", "95"], "--split is the share"),
    ],
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(tmp_path, capsys, flags, answer):
    make_run(tmp_path, [["a"]])

    assert run(tmp_path, *flags) == 2

    said = capsys.readouterr().err
    assert answer in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_photos_of_a_shard_that_changed_are_not_exported(tmp_path, out):
    ledger = make_run(tmp_path)
    (tmp_path / "in" / "s-1.tar").write_bytes(b"something else")

    with pytest.raises(ShardChanged):
        export(ledger, str(out), "coco-segments", Selection())

    assert not (out / "annotations").exists()
    assert not (out / "_SUCCESS").exists()


def test_nothing_to_export_is_said(tmp_path, out):
    with pytest.raises(ConfigError, match="nothing is committed yet"):
        export(make_run(tmp_path, [["a"]], leave_out=(0,)), str(out), "coco-segments", Selection())


def test_an_export_may_live_on_object_storage(tmp_path):
    import fsspec

    export(make_run(tmp_path), f"memory://exports{tmp_path}", "coco-segments", Selection())

    files = fsspec.filesystem("memory").find(f"/exports{tmp_path}")
    assert {name.rpartition("/")[2] for name in files} >= {"export.json", "instances_train.json", "a.png"}
