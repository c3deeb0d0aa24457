"""Exports on a real S3 server: the same objects as on a disk, stopped or not."""

import uuid

import pytest

from pipeline.datasets.selection import Selection
from pipeline.errors import ConfigError
from pipeline.exports import annotations
from pipeline.exports import export as hub
from pipeline.exports.export import export
from pipeline.storage.object_store import Store
from tests.storage.test_names import UGLY
from tests.support.labelled import make_run
from tests.support.processes import servers


@pytest.fixture
def place(s3):
    return f"s3://{servers.BUCKET}/{uuid.uuid4().hex[:8]}"


def content(store):
    return {name: store.get(name) for name, _ in store.list("")}


@pytest.mark.parametrize("kind", ["coco-segments", "png", "webdataset"])
def test_an_export_to_s3_is_the_one_on_a_disk(tmp_path, place, kind):
    ledger = make_run(tmp_path)
    export(ledger, str(tmp_path / "out"), kind, Selection(split=0.5))

    export(ledger, place, kind, Selection(split=0.5))

    assert content(Store(place)) == content(Store(str(tmp_path / "out")))


def test_a_stopped_export_to_s3_goes_on(tmp_path, place, monkeypatch):
    monkeypatch.setitem(hub.FORMATS, "coco-segments", hub.Format(annotations.segments, part=4))
    ledger = make_run(tmp_path)
    export(ledger, str(tmp_path / "out"), "coco-segments", Selection())

    def stop(state):
        if state.parts == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ledger, place, "coco-segments", Selection(), tick=stop)
    export(ledger, place, "coco-segments", Selection())

    assert content(Store(place)) == content(Store(str(tmp_path / "out")))


def test_samples_of_ugly_keys_lie_on_s3_as_on_a_disk(tmp_path, place):
    ledger = make_run(tmp_path, [UGLY, ["a", "b"]])
    export(ledger, str(tmp_path / "out"), "png", Selection(), images=False)

    done = export(ledger, place, "png", Selection(), images=False)

    assert done.state.tally.images == len(UGLY) + 2
    assert content(Store(place)) == content(Store(str(tmp_path / "out")))


def test_something_else_in_the_place_of_an_export_to_s3_is_refused(tmp_path, place):
    ledger, store = make_run(tmp_path), Store(place)
    export(ledger, place, "png", Selection())
    for name in ("_SUCCESS", "_export/000000.json", "SegmentationObject/b.png"):
        store.remove(name)
    store.put_new("SegmentationObject/b.png", b"mine")
    with pytest.raises(ConfigError, match=r"b\.png: something else is here already"):
        export(ledger, place, "png", Selection())
