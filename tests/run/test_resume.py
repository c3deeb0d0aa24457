"""A resume reads a run's state from one listing, however much is left to do."""

from collections.abc import Callable, Iterator

import pytest

from pipeline.bench.fake_model import FakeSegmenter
from pipeline.config import RunConfig
from pipeline.labelling import Summary, finish
from pipeline.run.ledger import Ledger
from pipeline.storage.object_store import Store
from pipeline.worker.worker import Worker

HERE = RunConfig(workers=0)


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is listed on storage, and where work begins."""
    asked: list[str] = []
    listing = Store.versions

    def noted(store: Store, prefix: str) -> Iterator[tuple[str, int, str]]:
        asked.append(prefix)
        return listing(store, prefix)

    monkeypatch.setattr(Store, "versions", noted)
    return asked


class Unwell(FakeSegmenter):
    """A model that fails on every image."""

    def segment(self, images):
        raise RuntimeError("out of sorts")


def resume(
    ledger: Ledger, listed: list[str], model: type[FakeSegmenter] = FakeSegmenter, again: bool = False
) -> Summary:
    """What the command does once more, with nothing remembered of the run."""

    def build(settings: object) -> Worker:
        listed.append("work begins")
        return Worker(Ledger.open(ledger.store.url), model(batch_size=3))

    listed.clear()
    return finish(Ledger.open(ledger.store.url), "fake", HERE, retry_failed=again, build=build)


def before_work(listed: list[str]) -> int:
    """Listings of `labels/` before the first worker is built."""
    return listed[: listed.index("work begins")].count("labels/")


def remove_last_window(ledger: Ledger) -> None:
    """Of its last shard, which has its end record: no listing shows that it is gone."""
    ledger.store.remove(list(ledger.windows())[-1].name)


def remove_first_window(ledger: Ledger) -> None:
    ledger.store.remove(next(ledger.windows()).name)


def remove_everything(ledger: Ledger) -> None:
    for name, _ in list(ledger.store.list("labels/")):
        ledger.store.remove(name)


def test_a_finished_run_is_listed_once(ledger, listed):
    resume(ledger, listed)
    assert resume(ledger, listed).idle
    assert listed.count("labels/") == 1


@pytest.mark.parametrize("damage", [remove_everything, remove_first_window])
def test_a_resume_lists_once_before_work_and_once_to_prove_what_is_there_after_it(
    ledger: Ledger, listed: list[str], damage: Callable[[Ledger], None]
) -> None:
    resume(ledger, listed)
    damage(ledger)
    summary = resume(ledger, listed)
    assert (summary.faults, summary.totals.rows) == ((), 17)
    assert (before_work(listed), listed.count("labels/")) == (1, 2)


def test_a_window_that_no_listing_shows_to_be_missing_is_found_by_the_proof(ledger, listed):
    resume(ledger, listed)
    remove_last_window(ledger)
    summary = resume(ledger, listed)
    assert (summary.faults, summary.totals.rows) == ((), 17)
    assert (before_work(listed), listed.count("labels/")) == (2, 3)  # the proof, and the proof after its work


def test_windows_with_failed_rows_are_found_in_the_listing_of_the_resume(ledger, listed):
    assert resume(ledger, listed, Unwell).totals.failed_rows == 17
    summary = resume(ledger, listed, again=True)
    assert (summary.faults, summary.totals.failed_rows) == ((), 0)
    assert (before_work(listed), listed.count("labels/")) == (1, 2)
