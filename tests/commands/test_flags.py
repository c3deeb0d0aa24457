"""What a run was begun with is told by the flags that repeat it, whatever differs."""

import json
import shlex
from dataclasses import asdict, fields, replace

import pytest
import typer

from diffseg.config import SegmentConfig
from jobs.shared import cli, options
from pipeline import flags
from pipeline.exports.export import LATER
from pipeline.records import READERS
from pipeline.run.spec import Run
from tests.conftest import a_run, samples, write_shard

OPTIONS = {
    name: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
    for name, command in typer.main.get_group(cli.app).commands.items()
}
RUN = a_run()
SPLIT = a_run(segment=replace(RUN.segment, mode="quality"))
SETTINGS = {each.name for each in fields(SegmentConfig)}
BEGUN = {  # a value that no run has unless it is asked for, as JSON has it
    "mode": "paper",
    "thresholds": [0.7, 0.9, 1.1234567],
    "anchors_per_side": 8,
    "refine": True,
    "timestep": 77,
    "image_size": 64,
    "output_size": "source",
    "min_area": 0.25,
    "split_components": True,
    "dtype": "bfloat16",
    "compile": True,
    "edges": True,
    "tree": True,
    "leaves": 128,
    "cut": 0.7,
    "vectors": True,
    "ridges": True,
    "crop_layers": 1,
    "clusters": 8,
    "words": ["cat, kitten", "dog"],
    "window": 9,
    "image_key": "a b.jpg",
    "also": ["webdataset"],
    "keep": "json:license,url",
    "weights_sha256": "another",
    "schema": 2,
    "reader": next(rules for rules in READERS if rules != RUN.reader),
}


def compared():
    """What keeps two runs apart, as run.json says it."""
    said = json.loads(RUN.to_json())
    return {*said, *SETTINGS, "keep"} - {"segment", "made_with", "fingerprint", "model", "revision"}


def begun(name):
    said = json.loads(RUN.to_json())
    table = said["segment"] if name in SETTINGS else said
    table[name] = BEGUN[name]
    if name == "clusters":
        table["mode"] = "quality"
    return Run.from_json(json.dumps(said).encode())


def test_everything_that_can_differ_has_its_flag_or_its_reason_to_have_none():
    assert compared() | {"model"} == set(flags.LABEL)
    assert set(BEGUN) == compared()
    named = {name for name, said in flags.LABEL.items() if said.startswith("--")}
    assert {flags.LABEL[name] for name in named} <= OPTIONS["label"]
    in_the_file = {name for name, said in flags.LABEL.items() if said == flags.CONFIG}
    assert in_the_file <= SETTINGS
    assert not {f"--{name.replace('_', '-')}" for name in in_the_file} & OPTIONS["label"]
    assert set(flags.LABEL) - named - in_the_file == {"weights_sha256", "schema", "reader"}


def refused(there: Run, here: Run, *more: str) -> str:
    said = there.refusal(here, *more)
    assert said is not None
    return said


@pytest.mark.parametrize("name", BEGUN)
def test_a_refusal_says_what_differs_and_the_flag_to_repeat(name):
    refusal = refused(begun(name), SPLIT if name == "clusters" else RUN)
    said = {"keep": None} | json.loads(RUN.to_json()) | json.loads(json.dumps(asdict(RUN.segment)))
    assert f"({name}: {BEGUN[name]} there, {said[name]} here)" in refusal
    if said := flags.LABEL[name]:
        assert f"): it was begun with {said}" in refusal
        assert refusal.endswith(": repeat that, or use another --output")
    else:
        assert refusal.endswith("): use another --output")


@pytest.mark.parametrize(("name", "said"), [("also", "--also"), ("image_key", "--image-key")])
def test_what_a_run_was_begun_without_is_told(name, said):
    assert refused(RUN, begun(name)).endswith(f": it was begun without {said}: repeat that, or use another --output")


def test_a_run_of_0_1_0_is_continued_by_the_flags_of_what_it_had_not():
    default = a_run(segment=replace(RUN.segment, edges=True, tree=True, vectors=True, cut=0.7))
    said = "it was begun with --no-edges --no-tree --no-vectors: repeat that, or use another --output"
    assert refused(RUN, default).endswith(said)


def test_a_run_without_a_tree_is_continued_by_saying_so_and_a_run_with_one_by_its_cut():
    grown = a_run(segment=replace(RUN.segment, tree=True, cut=0.7, leaves=9))
    assert refused(RUN, grown).endswith("it was begun with --no-tree: repeat that, or use another --output")
    greedy = a_run(segment=replace(RUN.segment, thresholds=(0.5, 0.5)))
    assert "begun with --cut 0.7 --leaves 9 --tree: repeat" in refused(grown, greedy)


def test_another_model_is_told_by_its_name_and_other_weights_of_the_same_name_by_their_digest():
    other = a_run(model="sd1.5", weights_sha256="f00")
    assert "(model: sd1.5 there, fake here): it was begun with --model sd1.5: repeat" in refused(other, a_run())
    assert "holds another run (weights_sha256: f00 there, 0 here): use" in refused(a_run(weights_sha256="f00"), a_run())
    assert a_run(model="a copy").refusal(a_run()) is None


def test_what_no_flag_can_mend_is_told_with_the_rest():
    assert "holds another run (edited): use another" in refused(a_run(), a_run(), "edited")
    said = refused(begun("window"), RUN, "edited")
    assert said.endswith("edited): it was begun with --window 9: use another --output")


@pytest.mark.parametrize("text", ["0.4", "0.7,0.9,1.1", "1.1,1.1", "0.1234567890123,1,2", "1e-9", "12345678.25"])
def test_a_schedule_is_spelt_so_that_label_reads_the_same(text):
    assert options.schedule(flags.spelt(options.schedule(text))) == options.schedule(text)


def test_a_single_iteration_is_told_where_it_can_be_said():
    assert flags.flag("thresholds", (0.5,)) == "[segment] thresholds = [0.5] in the file of --config"


GIVEN = "--mode paper --threshold 0.7,0.9,1.1 --timestep 77 --image-size 64 --output-size 64 --refine --min-area 0.01 "
GIVEN += "--dtype bfloat16 --window 9 --image-key jpg --also webdataset"


def test_the_flags_that_a_refusal_names_take_the_run_up_again(tmp_path, capsys):
    shard = str(write_shard(tmp_path / "s.tar", samples(1)))
    words = ["label", shard, "--output", str(tmp_path / "run"), "--model", "tiny", "--workers", "0"]
    assert cli.run([*words, *GIVEN.split()]) == 0
    capsys.readouterr()
    assert cli.run([*words, "--window", "8"]) == 2
    said = capsys.readouterr().err
    told = said.partition("was begun with ")[2].partition(": repeat")[0]
    assert set(GIVEN.split()) <= set(shlex.split(told))
    assert cli.run([*words, *shlex.split(told)]) == 0
    assert "already complete" in capsys.readouterr().out


def test_an_export_tells_its_flags_too(tmp_path, capsys):
    shard = str(write_shard(tmp_path / "s.tar", samples(2)))
    run, output = str(tmp_path / "run"), str(tmp_path / "out")
    assert cli.run(["label", shard, "--output", run, "--model", "tiny", "--workers", "0", "--image-size", "64"]) == 0
    words = ["export", run, "--output", output, "--format", "webdataset"]
    given = ["--no-members", "--where", "quality >= 0 or num_segments > 0", "--split", "0.5"]
    assert cli.run([*words, *given]) == 0
    recorded = set(json.loads((tmp_path / "out" / "export.json").read_bytes()))
    assert recorded == {*flags.EXPORT, "model", "model_licence"} - set(LATER)
    assert {said for said in flags.EXPORT.values() if said} <= OPTIONS["export"]
    capsys.readouterr()

    assert cli.run([*words, "--limit", "1"]) == 2
    said = capsys.readouterr().err
    assert "without --limit: repeat that" in said
    assert cli.run([*words, *shlex.split(said.partition("was begun with ")[2].partition(" and without")[0])]) == 0
    assert "already complete" in capsys.readouterr().out
    assert cli.run(["export", run, "--output", output, "--format", "png"]) == 2
    assert "it was begun with --format webdataset" in capsys.readouterr().err


def test_label_pilot_and_segment_take_one_set_of_segmentation_options():
    commands = typer.main.get_group(cli.app).commands
    names = {each.name for each in fields(options.SegmentOptions)}
    declared = {
        command: {
            option.name: (option.opts, option.secondary_opts, getattr(option, "help", None), option.default)
            for option in commands[command].params
            if option.name in names
        }
        for command in ("label", "pilot", "segment")
    }
    assert declared["label"].keys() == names
    assert declared["segment"] == declared["label"]
    threshold = declared["pilot"].pop("threshold")  # it takes several, and says so itself
    assert threshold[0] == declared["label"].pop("threshold")[0] == ["--threshold"]
    assert declared["pilot"] == declared["label"]
    assert SETTINGS - {"anchors_per_side", "split_components", "compile"} == names - {"config", "threshold"} | {
        "thresholds"
    }
