"""Parallel maps: in this process, in several processes of this machine, or on a Ray cluster.

Each gives the results in the order of the items, and reads only a few items ahead of them.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

from pipeline.concurrency import PREFETCH, ParallelMap, R, T, map_here, prefetch_map
from pipeline.errors import ConfigError, WorkerLost
from pipeline.logs.context import current
from pipeline.logs.records import Record, own_log, replay
from pipeline.process import environment
from pipeline.searchpath import child_environment, settle
from pipeline.watch import SILENCE_S


@contextmanager
def parallel_mapping(
    processes: int = 0,
    ray_address: str | None = None,
    note: Callable[[str], None] = lambda message: None,
    silence_s: float | None = None,
) -> Iterator[ParallelMap]:
    """A map that runs on a Ray cluster, else in so many processes beside this one, else in this process.

    note, silence_s: see `Cluster`.
    Raises ConfigError where both are asked for or no cluster is at the address, WorkerLost where a process dies,
    RayLost, Stopped.
    """
    if processes and ray_address:
        raise ConfigError(f"--processes {processes} are of this machine alone: leave them out with --ray-address")
    if ray_address:
        from pipeline.cluster import Cluster

        with Cluster(ray_address, note, silence_s or SILENCE_S) as cluster:
            yield cluster.map
    elif processes:
        with _processes(processes) as parallel_map:
            yield parallel_map
    else:
        yield map_here


@contextmanager
def _processes(count: int) -> Iterator[ParallelMap]:
    try:
        with environment(child_environment()):  # multiprocessing starts a process of its own with the first lock
            pool = ProcessPoolExecutor(count, _Spawn(), initializer=settle)
    except OSError as error:
        raise ConfigError(f"--processes {count}: their locks cannot be made (in /dev/shm): {error}") from error
    try:
        with pool:

            def parallel_map(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
                def ask(item: T) -> R:
                    result, log = pool.submit(_with_log, function, item).result()
                    replay(log, **current().labels)
                    return result

                return prefetch_map(ask, items, depth=PREFETCH * count, threads=count)

            yield parallel_map
    except BrokenProcessPool as error:
        raise WorkerLost(f"one of {count} processes died; try fewer, memory may be short") from error


def _with_log(function: Callable[[T], R], item: T) -> tuple[R, tuple[Record, ...]]:
    own_log()
    return function(item), own_log().take()


class _Process(SpawnProcess):
    def start(self) -> None:
        with environment(child_environment()):
            super().start()


class _Spawn(SpawnContext):
    """Starts processes that find the standard library and our packages, not their namesakes in the working folder."""

    Process = _Process
