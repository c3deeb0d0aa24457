"""Every kind of input through a worker: one row a sample, proved against the input's own bytes."""

import functools
import http.server
import io
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.table.label_map import decode_label_map
from pipeline.worker.worker import Worker
from tests.conftest import a_run, jpeg, samples, write_shard

COUNT = 10


def tar(folder):
    return [write_shard(folder / "s.tar", samples(COUNT))]


def zstd(folder):
    (folder / "s.tar.zst").write_bytes(zstandard.compress(write_samples(samples(COUNT))))
    return [folder / "s.tar.zst"]


def images(folder):
    for number in range(COUNT):
        (folder / "photos" / str(number % 2)).mkdir(parents=True, exist_ok=True)
        (folder / "photos" / str(number % 2) / f"{number}.jpeg").write_bytes(jpeg(number))
    return [folder / "photos"]


def parquet(folder):
    cells = [{"bytes": jpeg(number), "path": f"{number}.jpg"} for number in range(COUNT)]
    column = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    pq.write_table(pa.table({"image": column, "label": list(range(COUNT))}), folder / "s.parquet", row_group_size=3)
    return [folder / "s.parquet"]


def two_of_one_name(folder):
    return [write_shard(folder / side / "s.tar", samples(COUNT // 2)) for side in ("a", "b")]


@pytest.mark.parametrize("make", [tar, zstd, images, parquet, two_of_one_name], ids=lambda make: make.__name__)
def test_every_sample_of_every_kind_of_input_has_its_row(tmp_path, make):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(path) for path in make(tmp_path)]))
    tasks = ledger.missing()
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(tasks))
    checked = list(audit(Ledger.open(ledger.store.url), full=True))
    assert [fault for shard in checked for fault in shard.faults] == []
    rows = list(ledger.rows(["status", "label_map"]))
    assert [row["status"] for row in rows] == [OK] * COUNT
    assert len({decode_label_map(row["label_map"]).tobytes() for row in rows}) >= COUNT // 2


@pytest.mark.parametrize("make", [zstd, images, parquet], ids=lambda make: make.__name__)
def test_a_window_in_the_middle_of_any_kind_of_input_can_be_made_alone(tmp_path, make):
    shards = pin([str(path) for path in make(tmp_path)])
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
    window = list(ledger.windows())[1]
    before = list(ledger.rows())
    (tmp_path / "run" / window.name).unlink()
    [task] = ledger.missing()
    assert (task.first_window, task.last_window) == (1, 1)
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run([task]))
    assert list(ledger.rows()) == before


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_shard_on_a_web_server_without_ranges(tmp_path):
    write_shard(tmp_path / "in/s.tar", samples(COUNT))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "in")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        shards = pin([f"http://127.0.0.1:{server.server_port}/s.tar?token=secret"])
        ledger = Ledger.start(str(tmp_path / "run"), a_run(), shards)
        list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
        assert len(list(ledger.rows())) == COUNT
        everything = b"".join(ledger.store.get(name) for name, _ in ledger.store.list(""))
        assert b"secret" not in everything
    finally:
        server.shutdown()
        server.server_close()


def test_labels_can_be_read_by_parquet_alone(tmp_path):
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(path) for path in tar(tmp_path)]))
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
    window = next(iter(ledger.windows()))
    assert pq.read_table(io.BytesIO(ledger.store.get(window.name))).num_rows == 4
