"""`map` that runs ahead of its consumer in threads, and the type of every map whose calls run side by side."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Waiting = Callable[[], AbstractContextManager[None]]  # makes a context that is entered to wait
PREFETCH = 8  # items a process that are read ahead


class ParallelMap(Protocol):
    """`map` whose calls run side by side, in threads, processes or on a cluster."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """function(item) for every item, in order. Function, items and results may be pickled on their way."""


def map_here(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """A ParallelMap in this process: the next items are read while the function runs."""
    return prefetch_map(function, items, depth=PREFETCH)


def prefetch_map(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    depth: int,
    threads: int = 1,
    empty: Waiting = nullcontext,
    late: Waiting = nullcontext,
    full: Waiting = nullcontext,
    name: str = "map",
) -> Iterator[R]:
    """`map`, in order, in `threads` threads, at most about `depth` results ahead of the consumer.

    Another thread iterates the items, so a result is handed on as soon as it is computed, even while the next item is
    still to come. What `items` or `function` raises is raised here, after the results before it.
    empty, late: entered while the consumer waits for the next item, for its result; full: entered while the thread that
    iterates waits for room. name: of the threads, for debuggers. Every thread has the context (`logs.context`) of the
    thread that gave it its work.
    """
    ready: queue.Queue[Future[R] | BaseException | None] = queue.Queue(depth)
    closed = threading.Event()

    def put(result: Future[R] | BaseException | None) -> bool:
        while not closed.is_set():
            try:
                ready.put(result, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
                for item in items:
                    result = pool.submit(copy_context().run, function, item)
                    with full():
                        if not put(result):
                            return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            put(error)
        else:
            put(None)

    threading.Thread(target=copy_context().run, args=(produce,), daemon=True, name=f"{name}-items").start()
    try:
        while True:
            with empty():
                result = ready.get()
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            with late():
                done = result.result()
            yield done
    finally:
        closed.set()
