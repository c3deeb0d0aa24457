"""Messages between the driver and the process that Ray is in. They import no Ray: the driver reads them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.logs.records import Record

EXCHANGE_S = 1.0  # in which an actor answers: one small call a second for each worker


@dataclass(frozen=True, slots=True)
class Logged:
    """A step towards an answer, with what the process that Ray is in logged meanwhile: who waits for it waits on."""

    records: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A call failed."""

    why: str


@dataclass(frozen=True, slots=True)
class RayStart:
    """Where Ray's own processes listen: this machine's raylet (a path), and the GCS (host:port); empty: not known.

    refused: why Ray did not start, or cannot be joined; permanent: another start would fail too.
    """

    raylet: str = ""
    gcs: str = ""
    refused: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The nodes of a cluster, its GPUs and its CPUs.

    draining: seconds that are left to nodes about to go, infinite where no deadline was given. metrics: the URLs at
    which nodes export theirs.
    """

    nodes: frozenset[str] = frozenset()
    draining: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 0
    cpus: int = 1
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """How a worker is started as an actor. worker: its settings and what builds it, by pickle; options: Ray's."""

    worker: bytes
    options: Mapping[str, Any]
