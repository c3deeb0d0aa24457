"""One function over many items side by side: in this process, in several of this machine, or on a Ray.

Every way gives the results in order of the items and reads only a few items ahead of them.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Protocol, TypeVar

from pipeline.errors import ConfigError, WorkerLost
from pipeline.overlap import map_ahead

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 8  # items a process that are read before their turn


class Spread(Protocol):
    """Applies a function to items."""

    def __call__(self, function: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
        """function(item) for every item, in order. What travels between processes travels by pickle."""


def here(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """In this process, while the next items are read."""
    return map_ahead(function, items, depth=AHEAD)


@contextmanager
def spreading(processes: int = 0, ray_address: str | None = None) -> Iterator[Spread]:
    """Where work is to be done: on a Ray, in processes beside this one, else here.

    Raises ConfigError where both are asked for or no Ray is there, WorkerLost where a process dies.
    """
    if processes and ray_address:
        raise ConfigError(f"--processes {processes} are of this machine alone: leave them out with --ray-address")
    if ray_address:
        from pipeline.actor import Cluster

        with Cluster(ray_address) as cluster:
            yield cluster.map
    elif processes:
        with _processes(processes) as spread:
            yield spread
    else:
        yield here


@contextmanager
def _processes(count: int) -> Iterator[Spread]:
    try:
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:

            def spread(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
                def ask(item: T) -> R:
                    return pool.submit(function, item).result()

                return map_ahead(ask, items, depth=AHEAD * count, threads=count)

            yield spread
    except BrokenProcessPool as error:
        raise WorkerLost(f"one of {count} processes died; try fewer, memory may be short") from error
