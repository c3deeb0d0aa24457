"""The kit of faults: what it breaks, it breaks as the real thing does, and a run outlives it."""

import gc
import random
from collections.abc import Callable
from math import log2

import numpy as np
import pytest

from pipeline.bench.fake_model import FakeSegmenter, by_brightness
from pipeline.bench.faulty_storage import FAULTS, FaultyStorage
from pipeline.bench.job import BenchJob, Build
from pipeline.cluster import Cluster, RayPool
from pipeline.driver.loop import drive
from pipeline.driver.pool import LocalPool
from pipeline.driver.progress import Counters
from pipeline.errors import StorageError
from pipeline.inputs.decode import decode
from pipeline.inputs.shards import pin
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage import retry
from pipeline.storage.object_store import Store
from pipeline.worker.build import WorkerSettings
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard
from tests.support.vulnerable import MARKS, Vulnerable, mark_of, marked


def test_the_fake_labels_the_dark_and_the_bright_in_the_order_they_come():
    image = np.full((4, 6, 3), 200, np.uint8)
    image[1:3, 2:5] = 10

    result = by_brightness(image)

    assert result.label_map.tolist()[1] == [0, 0, 1, 1, 1, 0]
    assert [(s.id, s.area, s.box) for s in result.segments] == [(0, 18, (0, 0, 6, 4)), (1, 6, (2, 1, 3, 2))]
    assert len(by_brightness(image[:1]).segments) == 1


@pytest.mark.parametrize("what", MARKS)
def test_a_mark_is_known_again_after_its_way_through_a_shard_and_photos_have_none(what):
    assert mark_of(decode(marked(what))) == what
    almost = decode(marked(what)).copy()
    almost[-1, -1] = 0
    assert mark_of(almost) is None
    assert mark_of(decode(samples(1)[0][1]["jpg"])) is None


def test_a_mark_nobody_knows_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"raise, segfault, hang, memory, got 'sneeze'"):
        marked("sneeze")


def test_a_sample_marked_to_raise_costs_nobody_else_a_row(tmp_path):
    content = samples(6)
    content[2] = ("bad", {"png": marked("raise")})
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(write_shard(tmp_path / "m.tar", content))]))
    list(Worker(ledger, Vulnerable(FakeSegmenter(batch_size=4))).run(ledger.missing()))
    assert [row["status"] for row in ledger.rows()] == [OK, OK, "model_error", OK, OK, OK]


def complete_through(bad, url, tmp_path):
    """The rows of a run whose storage breaks from the first window on."""
    for number in range(4):
        write_shard(tmp_path / "in" / f"s-{number}.tar", samples(12, first=20 * number))
    ledger = Ledger.start(url, a_run(), pin([str(tmp_path / "in" / "s-*.tar")]))
    pool = LocalPool(lambda: Worker(Ledger.open(url), FakeSegmenter()), workers=2)
    before = retry.retries()
    with retry.sent_by(bad):
        drive(ledger, pool, ledger.missing(), Counters())
        pool.close()
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    assert [row["status"] for row in ledger.rows()] == [OK] * 48
    return retry.retries() - before


def test_a_run_on_a_bad_disk_is_complete_and_its_repeats_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.bench.faulty_storage.SLOW_S", 0.01)
    bad = FaultyStorage(0.1, seed=3)
    repeats = complete_through(bad, str(tmp_path / "run"), tmp_path)
    assert repeats > 0, (repeats, bad.seen)
    seen = bad.seen.total()
    Store(str(tmp_path / "after")).put_new("x", b"x")
    assert bad.seen.total() == seen, "requests after the block go past it"


def test_the_storage_of_a_worker_of_a_faulty_job_fails_until_its_process_ends(tmp_path, monkeypatch):
    at_exit: list[Callable[[], None]] = []
    monkeypatch.setattr("atexit.register", at_exit.append)
    monkeypatch.setattr("pipeline.bench.faulty_storage.SLOW_S", 0.01)
    ledger = Ledger.start(str(tmp_path / "run"), a_run(), pin([str(write_shard(tmp_path / "a.tar", samples(4)))]))
    job = BenchJob(photos=(), output=ledger.store.url, workers=1, window=4, storage_faults=0.5)
    before = retry.retries()
    worker = Build(job)(WorkerSettings(ledger.store.url, "fake"))
    gc.collect()
    for number in range(20):
        worker.ledger.store.put_new(f"x/{number}", b"x")
    faulty = retry.retries()
    [close] = at_exit
    close()
    worker.ledger.store.put_new("y", b"y")
    assert before < faulty == retry.retries()


@pytest.mark.slow
def test_a_run_on_a_bad_object_store_is_complete(s3, tmp_path):
    assert complete_through(FaultyStorage(0.1, seed=4), "s3://bucket/bad-storage", tmp_path) > 0


@pytest.mark.slow
def test_an_outage_lasts_and_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.bench.faulty_storage.OUTAGE_SHARE", 1.0)
    bad = FaultyStorage(0.5, seed=1, outage_s=0.6)
    store = Store(str(tmp_path))
    with retry.sent_by(bad):
        for number in range(6):
            store.put_new(f"a/{number}", b"x")
    assert bad.seen["503"] > 2
    assert len(list(store.list("a/"))) == 6


def the_only(fault):
    """Storage that fails once, in this way."""
    drawn = iter([fault])

    class FailingOnce(FaultyStorage):
        def _draw(self):
            return next(drawn, None)

    return FailingOnce(0.0, seed=0)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_outlived_by_a_put_and_by_a_read(tmp_path, fault):
    store = Store(str(tmp_path))
    bad = the_only(fault)
    with retry.sent_by(bad):
        store.put_new("x", b"whole")  # a stored object whose reply was lost answers False: its writer compares
    assert bad.seen[fault] == 1
    with retry.sent_by(the_only(fault)):
        assert store.get("x") == b"whole"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["503", "reset before", "cut in the body", "stored then reset"])
def test_what_is_raised_means_what_the_real_library_means(s3, fault):
    """The first failure of a request through a proxy that breaks, against the same made up here."""
    store = Store("s3://bucket/means")
    name = f"{fault.replace(' ', '-')}-{random.getrandbits(32):x}"

    def meaning(request):
        try:
            request()
        except Exception as error:  # noqa: BLE001 - whatever is raised is what is compared
            return type(retry.translate("s3://bucket/x", error)), retry._is_transient(error)
        return None

    def put():
        store._fs.pipe_file(store._path(name), b"x" * 1000, mode="create")

    def get():
        return store._fs.cat_file(store._path("there"))

    store.put_new("there", b"y" * 1000)
    asked = get if fault == "cut in the body" else put
    s3.choose = lambda number, method, path: fault
    real = meaning(asked)
    s3.calm()
    made_up = meaning(lambda: the_only(fault)("s3://bucket/x", lambda: "stored"))
    assert real == made_up == (StorageError, True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_samples_that_raise_segfault_hang_and_exhaust_memory_are_four_rows_with_reasons(tmp_path, capsys):
    content, window = samples(32), 8
    for index, what in {3: "raise", 10: "segfault", 17: "hang", 29: "memory"}.items():
        content[index] = (what, {"png": marked(what)})
    shard = write_shard(tmp_path / "in" / "deadly.tar", content)
    ledger = Ledger.start(str(tmp_path / "run"), a_run(window=window), pin([str(shard)]))

    def build(worker_settings):
        return Worker(Ledger.open(worker_settings.output), Vulnerable(FakeSegmenter(batch_size=3), 256 << 20))

    counters = Counters()
    with Cluster() as cluster:
        pool = RayPool(cluster, WorkerSettings(ledger.store.url, "fake"), workers=2, build=build)
        drive(ledger, pool, ledger.missing(), counters, stall_s=8.0)
        pool.close()

    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
    reasons = {row["index"]: row["status"] for row in ledger.rows() if row["status"] != OK}
    assert reasons == {3: "model_error", 10: "poison", 17: "poison", 29: "poison"}
    assert len(list(ledger.rows())) == 32
    assert {path.name.split(".")[1] for path in (tmp_path / "run" / "failures").glob("*.poison.png")} == {
        f"{index:08d}" for index in (10, 17, 29)
    }
    bound = 3 * (4 + log2(window))
    assert counters.lost_workers <= bound
    with capsys.disabled():
        print(f"\n{counters.lost_workers} deaths for three samples that kill, at most {bound:.0f} are allowed")  # noqa: T201
