"""Stages that run beside each other: a bounded queue between a producer's thread and its consumer."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")
Waiting = Callable[[], AbstractContextManager[None]]  # its block is time spent waiting
PREFETCH = 8  # items a process that are read before their turn


class ParallelMap(Protocol):
    """Applies a function to items."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """function(item) for every item, in order. What travels between processes travels by pickle."""


def map_here(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """In this process, while the next items are read."""
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
) -> Iterator[R]:
    """`map`, in order, in `threads` threads, at most about `depth` results ahead of the consumer.

    The items are iterated in a thread of their own, so a result is handed on as soon as it is there, even while the
    next item is still to come. What `items` or `function` raises is raised here, after the results before it.
    empty, late: entered while the consumer waits for the next item, for its result; full: while the thread that
    iterates waits for room. Both threads have the context (`logs.context`) of whoever hands them their work.
    """
    name = getattr(function, "__name__", "stage")
    ready: queue.Queue[Future[R] | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def put(result: Future[R] | BaseException | None) -> bool:
        while not left.is_set():
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

    threading.Thread(target=copy_context().run, args=(produce,), daemon=True, name=f"ahead-{name}").start()
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
        left.set()
