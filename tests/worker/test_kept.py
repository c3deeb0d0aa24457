"""`--keep`: fields of a sample's own JSON go with its row, through filters, compaction, datasets and exports."""

import json

import pytest

from jobs.shared import cli
from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import ConfigError
from pipeline.inputs.shards import pin
from pipeline.messages import ShardTask
from pipeline.records import RawSample, SampleFailure
from pipeline.run.ledger import Ledger
from pipeline.table.filter import parse_filter
from pipeline.worker.committer import Committer
from pipeline.worker.sample_loader import LONGEST, kept_of
from tests.conftest import a_run, jpeg, write_shard
from tests.faults.test_fault_table import faults, label

KEEP = "json:license,url,tags"
SAID = [
    {"license": "CC0", "url": "https://a", "other": "x"},
    {"license": "BY", "tags": ["a", 1]},
    {"license": "CC0", "url": None},
    None,
    {},
    {"license": 7},
]
KEPT = [
    {"license": "CC0", "url": "https://a"},
    {"license": "BY", "tags": '["a", 1]'},
    {"license": "CC0"},
    None,
    None,
    {"license": "7"},
]


@pytest.fixture
def ledger(tmp_path):
    content = [
        (f"k{n}", {"jpg": jpeg(n), **({"json": json.dumps(said).encode()} if said is not None else {})})
        for n, said in enumerate(SAID)
    ]
    write_shard(tmp_path / "in" / "s.tar", [*content, ("bad", {"jpg": b"no", "json": b'{"license": "BY"}'})])
    shards = pin([str(tmp_path / "in" / "s.tar")])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(keep=KEEP, window=3), shards)
    label(ledger, FakeSegmenter())
    assert faults(ledger) == []
    return ledger


def keys(ledger, where):
    return [row["key"] for row in ledger.rows(["key"], filter=parse_filter(where))]


def test_kept_fields_are_in_every_row_that_has_them(ledger, tmp_path):
    assert [row["kept"] for row in ledger.rows(["kept"])] == [*KEPT, {"license": "BY"}]
    assert cli.run(["compact", str(tmp_path / "run")]) == 0
    again = Ledger.open(str(tmp_path / "run"))
    assert [row["kept"] for row in again.rows(["kept"])] == [*KEPT, {"license": "BY"}]
    assert faults(again) == []
    for reader in (ledger, again):
        assert keys(reader, 'kept.license == "CC0"') == ["k0", "k2"]
        assert keys(reader, "kept.license in ['BY', '7'] and index < 6") == ["k1", "k5"]
        assert keys(reader, "kept.nothing == 'x'") == []
        assert keys(reader, "not (kept.url == 'https://a')") == []


def test_exports_name_the_licences_of_photos(ledger, tmp_path):
    words = ["export", str(tmp_path / "run"), "--format", "coco-panoptic", "--where", "kept.license != 'x'"]
    assert cli.run([*words, "--output", str(tmp_path / "coco")]) == 0
    [path] = (tmp_path / "coco" / "annotations").glob("panoptic_*.json")
    said = json.loads(path.read_text())
    assert said["licenses"] == [{"id": n + 1, "name": name, "url": ""} for n, name in enumerate(("CC0", "BY", "7"))]
    assert {image["key"]: image["license"] for image in said["images"]} == {"k0": 1, "k1": 2, "k2": 1, "k5": 3}


def test_a_run_without_them_says_so(tmp_path, capsys):
    write_shard(tmp_path / "in" / "s.tar", [("a", {"jpg": jpeg(1)})])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "in" / "s.tar")]))
    label(ledger, FakeSegmenter())
    words = ["export", str(tmp_path / "run"), "--format", "png", "--output", str(tmp_path / "out")]
    assert cli.run([*words, "--where", "kept.license == 'CC0'"]) == 2
    assert "labelled without --keep" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="it was begun without --keep"):
        Ledger.start(str(tmp_path / "run"), a_run(keep="json:license"), pin([str(tmp_path / "in" / "s.tar")]))


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"[" * 100_000, None),
        (b"\xff", None),
        (b"[1]", None),
        (b'{"license": "\\ud800x"}', {"license": "\\ud800x"}),
        (json.dumps({"license": "x" * 10_000}).encode(), {"license": "x" * LONGEST}),
        (b'{"license": {"a": [1]}, "url": ""}', {"license": '{"a": [1]}', "url": ""}),
    ],
)
def test_json_of_any_kind(data, kept):
    assert kept_of(RawSample("k", 0, {"json": data}, None, 0), KEEP) == kept


@pytest.mark.parametrize("bytes_too", [True, False])
def test_bytes_of_samples_that_kill_are_kept_unless_nobody_wants_them(ledger, tmp_path, bytes_too):
    committer = Committer(ledger)
    committer.quarantine_bytes = bytes_too
    [shard] = ledger.shards.values()
    raw = RawSample("k", 3, {"jpg": b"photo"}, "jpg", 0)
    committer.quarantine(ShardTask(shard), SampleFailure(raw, "poison", "it killed"))
    suffixes = {path.suffix for path in (tmp_path / "run" / "failures").iterdir()}
    assert suffixes == ({".json", ".jpg"} if bytes_too else {".json"})


@pytest.mark.parametrize("keep", ["json", "json:", ":a", "json:a-b", "json:a,,b", "json:" + ",".join("a" * 40)])
def test_what_cannot_be_kept_is_one_line(tmp_path, capsys, keep):
    words = ["label", "x.tar", "--output", str(tmp_path / "run"), "--model", "tiny", "--keep", keep]
    assert cli.run(words) == 2
    assert "keep is a member and fields of it" in capsys.readouterr().err
