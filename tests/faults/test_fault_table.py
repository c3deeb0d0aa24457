"""The table of faults, row by row, under one law: the samples that went in are the rows that are there, each once.

Here are the rows that one process can show. Those that take more are with their processes: workers, nodes and drivers
that are killed in test_killed and test_chaos, notices of spot machines in test_nodes, test_cluster and test_actor,
samples that kill in test_faults, storage that fails in test_faults and test_s3, devices that compute wrongly in
test_unfit, two drivers in test_together, what must fail in seconds in test_cli.
"""

import errno
import io
import os
import tarfile
import threading
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffseg.types import AttentionError
from jobs.shared import cli
from pipeline import table
from pipeline.bench.fake_model import FakeSegmenter, by_brightness
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import Stopped
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.worker import sample_loader
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, samples, write_shard
from tests.support.damage import DAMAGED
from tests.support.hostile import REFUSED, SHOWN
from tests.support.vulnerable import Vulnerable, marked

WINDOW = 4


def a_ledger(folder, content, window=WINDOW):
    """A run of one shard."""
    path = folder / "in" / "s.tar"
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_shard(path, content)
    return Ledger.start(str(folder / "run"), a_run(window=window), pin([str(path)]))


def label(ledger, segmenter, max_attempts=3, workers=1, **settings):
    """The run to its end, in threads of this process."""
    tally = Counters()
    with closing(LocalPool(lambda: Worker(Ledger.open(ledger.store.url), segmenter), workers)) as pool:
        drive(ledger, pool, ledger.unfinished(), tally, max_attempts=max_attempts, **settings)
    return tally


def statuses(ledger, count):
    """Of all samples of the one shard, in order, once it is proved that each has one row."""
    [shard] = ledger.shards
    rows = list(ledger.rows(["shard", "index", "status"]))
    assert Counter((row["shard"], row["index"]) for row in rows) == Counter((shard, index) for index in range(count))
    return [row["status"] for row in rows]


def faults(ledger):
    """What keeps the run from being whole, every byte read again."""
    return [fault for shard in audit(ledger, full=True) for fault in shard.faults]


def test_images_of_every_odd_and_every_hostile_kind(tmp_path):
    images = [data for data, _ in SHOWN.values()] + [data for data, _ in REFUSED.values()]
    content = [(f"{place:04d}", {"jpg": data}) for place, data in enumerate(images)] + [("none", {"txt": b"words"})]
    ledger = a_ledger(tmp_path, content)
    label(ledger, FakeSegmenter())
    refused = [reason for _, reason in REFUSED.values()]
    assert statuses(ledger, len(content)) == [OK] * len(SHOWN) + refused + ["no_image"]
    assert faults(ledger) == []


def archive(folder):
    """A tar whose names are Latin-1."""
    names = [name.encode("latin-1").decode("utf-8", "surrogateescape") for name in ("café", "naïve", "plain")]
    with tarfile.open(folder / "s.tar", "w", format=tarfile.GNU_FORMAT) as packed:
        for place, name in enumerate(names):
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(jpeg(place))
            packed.addfile(info, io.BytesIO(jpeg(place)))
    return folder / "s.tar"


def directory(folder):
    """A folder whose files have such names."""
    (folder / "photos").mkdir()
    for place, name in enumerate(("café", "naïve", "plain")):
        Path(os.fsdecode(os.fsencode(folder / "photos") + b"/" + f"{name}.jpg".encode("latin-1"))).write_bytes(
            jpeg(place)
        )
    return folder / "photos"


@pytest.mark.parametrize("make", [archive, directory])
def test_names_that_are_no_text(tmp_path, make):
    try:
        shards = pin([str(make(tmp_path))])
    except OSError:
        pytest.skip("this disk takes no such names")
    ledger = Ledger.start(str(tmp_path / "run"), a_run(also=("webdataset",)), shards)
    label(ledger, FakeSegmenter())
    assert statuses(ledger, 3) == [OK] * 3
    assert [row["key"] for row in ledger.rows(["key"])] == ["caf\\udce9", "na\\udcefve", "plain"]
    assert faults(ledger) == []


@pytest.mark.parametrize("step", ["read", "written"])
def test_a_shard_that_our_own_code_fails_on_costs_no_other(tmp_path, monkeypatch, step):
    for name in "ab":
        write_shard(tmp_path / "in" / f"{name}.tar", samples(6))
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(tmp_path / "in" / "*.tar")]))
    bad, good = ledger.shards
    encode, read = table.encode_window, read_shard

    def too_large(records, metadata):
        return encode([replace(record, width=2**40) if record.shard == bad else record for record in records], metadata)

    def stumbling(shard, **how):
        for sample in read(shard, **how):
            if (shard.id, sample.index) == (bad, 2):
                raise TypeError("a mistake of ours")
            yield sample

    if step == "read":
        monkeypatch.setattr(sample_loader, "read_shard", stumbling)
    else:
        monkeypatch.setattr(table, "encode_window", too_large)
    tally = label(ledger, FakeSegmenter(), max_attempts=1)
    assert {shard: failure.kind for shard, failure in tally.broken.items()} == {bad: "Unhandled"}
    assert tally.lost_workers == 0
    assert {row["shard"] for row in ledger.rows()} == {good}
    monkeypatch.undo()
    label(ledger, FakeSegmenter())
    assert len(list(ledger.rows())) == 12
    assert faults(ledger) == []


class Choosy(FakeSegmenter):
    """Raises on some images, gives no attention for others: by their dark columns, as `jpeg` makes them."""

    def segment(self, images):
        numbers = [int((image[0, :, 1] < 128).sum()) - 4 for image in images]
        if 2 in numbers:
            raise ZeroDivisionError("a sample this model cannot do")
        if 5 in numbers:
            raise AttentionError("NaN", (numbers.index(5),))
        return super().segment(images)


def test_samples_on_which_the_model_raises_or_gives_no_number(tmp_path):
    ledger = a_ledger(tmp_path, samples(10))
    label(ledger, Choosy(batch_size=3))
    found = statuses(ledger, 10)
    assert {index: status for index, status in enumerate(found) if status != OK} == {2: "model_error", 5: "model_nan"}
    assert faults(ledger) == []


def test_a_sample_that_hangs_whoever_has_it(tmp_path):
    content = samples(10)
    content[6] = ("hang", {"png": marked("hang")})
    ledger = a_ledger(tmp_path, content)
    tally = label(ledger, Vulnerable(FakeSegmenter(batch_size=3)), stall_s=0.7)
    assert statuses(ledger, 10) == [OK] * 6 + ["poison"] + [OK] * 3
    assert tally.lost_workers <= 4 + 2, "4 + log2(window)"
    assert faults(ledger) == []


class Worthless(FakeSegmenter):
    """One segment everywhere, until it is told better."""

    mended = False

    def segment(self, images):
        threading.Event().wait(0.002 * len(images))
        return [by_brightness(image if self.mended else np.zeros_like(image)) for image in images]


class Refusing(Worthless):
    """Raises on everything, until it is told better."""

    def segment(self, images):
        if not self.mended:
            threading.Event().wait(0.002 * len(images))
            raise AttentionError("NaN", tuple(range(len(images))))
        return super().segment(images)


@pytest.mark.parametrize("model", [Worthless, Refusing])
def test_labels_that_are_worth_nothing_stop_a_run_that_another_model_can_finish(tmp_path, model):
    count = 1_200
    ledger = a_ledger(tmp_path, [(f"{n:04d}", {"jpg": jpeg(7)}) for n in range(count)], window=1024)
    segmenter = model(batch_size=8)
    with pytest.raises(Stopped, match="for example"):
        label(ledger, segmenter)
    assert list(ledger.windows()) == [], "nothing of it was committed"
    segmenter.mended = True
    label(ledger, segmenter)
    assert statuses(ledger, count) == [OK] * count
    assert faults(ledger) == []


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


class Small(FakeSegmenter):
    """A device that holds one image."""

    def segment(self, images):
        if len(images) > 1:
            raise OutOfMemoryError("CUDA out of memory")
        return super().segment(images)


def test_a_device_without_room_for_a_batch(tmp_path):
    ledger = a_ledger(tmp_path, samples(10))
    label(ledger, Small(batch_size=4))
    assert statuses(ledger, 10) == [OK] * 10
    assert faults(ledger) == []


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_shard_keeps_what_came_before_the_damage_and_is_told(tmp_path, what):
    data, salvaged = DAMAGED[what]
    ledger = a_ledger(tmp_path, data)
    tally = label(ledger, FakeSegmenter())
    [shard] = ledger.shards
    assert tally.broken[shard].kind == "CorruptShard"
    assert statuses(ledger, salvaged) == [OK] * salvaged
    assert faults(ledger) != []


def test_space_that_runs_out_stops_the_run_with_nothing_partial_and_the_same_command_finishes_it(
    tmp_path, monkeypatch, capsys
):
    photos = write_shard(tmp_path / "in" / "s.tar", [(f"{n}", {"jpg": jpeg(n, (96, 64))}) for n in range(12)])
    words = ["label", str(photos), "--output", str(tmp_path / "run"), "--model", "tiny", "--workers", "0"]
    words += ["--window", str(WINDOW)]
    is_full, link = threading.Event(), os.link

    def link_until_a_window_is_there(draft, target):
        if is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        link(draft, target)
        if "/labels/" in str(target):
            is_full.set()

    monkeypatch.setattr(os, "link", link_until_a_window_is_there)
    assert cli.run(words) == 4
    said = capsys.readouterr().err
    assert "no space left" in said
    assert "Traceback" not in said
    assert len(list((tmp_path / "run" / "labels").iterdir())) == 1
    assert list((tmp_path / "run" / "tmp").iterdir()) == [], "no draft is left behind"

    monkeypatch.undo()
    assert cli.run(words) == 0
    ledger = Ledger.open(str(tmp_path / "run"))
    assert statuses(ledger, 12) == [OK] * 12
    assert faults(ledger) == []
