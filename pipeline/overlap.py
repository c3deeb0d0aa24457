"""Stages that run beside each other: a bounded queue between a producer's thread and its consumer."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T")


def map_ahead(function: Callable[[S], T], items: Iterable[S], *, depth: int, threads: int = 1) -> Iterator[T]:
    """`map`, in order, in `threads` threads, at most about `depth` results ahead of the consumer.

    The items are iterated in a thread of their own, so a result is handed on as soon as it is there, even while the
    next item is still to come. What `items` or `function` raises is raised here, after the results before it.
    """
    ready: queue.Queue[Future[T] | BaseException | None] = queue.Queue(depth)
    left = threading.Event()

    def put(result: Future[T] | BaseException | None) -> bool:
        while not left.is_set():
            try:
                ready.put(result, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def produce() -> None:
        try:
            with ThreadPoolExecutor(threads) as pool:
                for item in items:
                    if not put(pool.submit(function, item)):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the consumer
            put(error)
        else:
            put(None)

    threading.Thread(target=produce, daemon=True, name=f"ahead-{getattr(function, '__name__', 'stage')}").start()
    try:
        while (result := ready.get()) is not None:
            if isinstance(result, BaseException):
                raise result
            yield result.result()
    finally:
        left.set()
