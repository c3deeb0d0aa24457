"""An item of a map on Ray: the function's thread, and a word every few seconds that its process lives."""

import pickle
import threading
from collections.abc import Iterator

import cloudpickle

from pipeline.logs.traces import traceback_of
from pipeline.searchpath import settle

BEAT = b""
BEAT_S = 1.0  # between two words


def run(function: bytes, item: bytes) -> Iterator[bytes]:
    """BEAT while it is at work, then, by pickle, (True, function(item)) or (False, what it raised)."""
    settle()
    came: list[bytes] = []
    done = threading.Event()

    def work() -> None:
        came.append(_result(function, item))
        done.set()

    threading.Thread(target=work, daemon=True, name="item").start()
    while not done.wait(BEAT_S):
        yield BEAT
    yield came[0]


def _result(function: bytes, item: bytes) -> bytes:
    try:
        result: bytes = cloudpickle.dumps((True, pickle.loads(function)(pickle.loads(item))))
    except BaseException as error:  # noqa: BLE001 - raised again by the driver, which gets no traceback
        error.add_note(f"In a process of the cluster:\n{traceback_of(error)}")
        return _raised(error)
    return result


def _raised(error: BaseException) -> bytes:
    try:
        said: bytes = cloudpickle.dumps((False, error))
        pickle.loads(said)
    except Exception:  # noqa: BLE001 - errors of a library's own may not travel; what they say does
        return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
    return said
