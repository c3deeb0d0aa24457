"""What every store must do, whoever made it: called with a place of one's own on it."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.storage.object_store import Store


def put(place: str, name: str, data: bytes) -> str:
    """An object, whatever was there; its URL."""
    Store(place).replace(name, data)
    return f"{place}/{name}"


def expect_objects_created_once_and_listed_by_prefix(place: str) -> None:
    store = Store(f"{place}/run/")
    assert store.put_new("labels/a.000000.parquet", b"first")
    assert not store.put_new("labels/a.000000.parquet", b"second")
    store.put_new("labels/ab.000000.parquet", b"x")
    store.put_new("_SUCCESS.0", b"1")
    assert store.get("labels/a.000000.parquet") == b"first"
    assert list(store.list("labels/a.")) == [("labels/a.000000.parquet", 5)]
    assert list(store.list("_SUCCESS.")) == [("_SUCCESS.0", 1)]
    assert [name for name, _ in Store(place).list("")] == [
        "run/_SUCCESS.0",
        "run/labels/a.000000.parquet",
        "run/labels/ab.000000.parquet",
    ]
    assert list(store.list("none/")) == []
    assert not store.exists("labels")
    for name in ("labels", "none"):
        with pytest.raises(FileNotFoundError):
            store.get(name)


def expect_one_winner_of_24(place: str) -> None:
    start = threading.Barrier(24)

    def write(number: int) -> bool:
        store = Store(place)
        start.wait()
        return store.put_new("labels/a", b"%02d" % number * 10_000)

    with ThreadPoolExecutor(24) as pool:
        won = [number for number, result in enumerate(pool.map(write, range(24))) if result]
    assert len(won) == 1
    assert Store(place).get("labels/a") == b"%02d" % won[0] * 10_000
