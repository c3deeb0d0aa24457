"""One item of a parallel map on Ray: the function in a thread, and a sign of life every second."""

import pickle
import threading
from collections.abc import Iterator

import cloudpickle

from pipeline.logs.records import own_log
from pipeline.logs.text import traceback_of
from pipeline.searchpath import settle

BEAT = b""
BEAT_S = 1.0  # between two signs of life


def run(function: bytes, item: bytes) -> Iterator[bytes]:
    """Yield BEAT while function(item) runs, then, by pickle, (True, result, log) or (False, what it raised, log)."""
    settle()
    own_log()
    results: list[bytes] = []
    done = threading.Event()

    def work() -> None:
        results.append(_result(function, item))
        done.set()

    threading.Thread(target=work, daemon=True, name="item").start()
    while not done.wait(BEAT_S):
        yield BEAT
    yield results[0]


def _result(function: bytes, item: bytes) -> bytes:
    try:
        result: bytes = cloudpickle.dumps((True, pickle.loads(function)(pickle.loads(item)), own_log().take()))
    except BaseException as error:  # noqa: BLE001 - raised again by the driver, which gets no traceback
        error.add_note(f"In a process of the cluster:\n{traceback_of(error)}")
        return _raised(error)
    return result


def _raised(error: BaseException) -> bytes:
    try:
        raised: bytes = cloudpickle.dumps((False, error, own_log().take()))
        pickle.loads(raised)
    except Exception:  # noqa: BLE001 - an error of a library may not unpickle; its message does
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), ()))
    return raised
