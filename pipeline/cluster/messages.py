"""What a driver and the process that Ray is in say to each other. No Ray here: the driver reads these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.messages import ShardTask

EXCHANGE_S = 1.0  # an actor answers at least this often: one small call a second and worker


@dataclass(frozen=True, slots=True)
class Step:
    """Something was reached on the way to an answer."""

    what: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be done."""

    why: str


@dataclass(frozen=True, slots=True)
class Began:
    """Where Ray's own processes listen: this machine's raylet (a path), and the GCS (host:port); empty: not known.

    refused: why Ray cannot be had; permanent: another start would end the same way.
    """

    raylet: str = ""
    gcs: str = ""
    refused: str = ""
    permanent: bool = False


@dataclass(frozen=True, slots=True)
class ClusterState:
    """The cluster now. draining: seconds that are left to nodes about to go, infinite where no deadline was given.

    metrics: where nodes export them, as URLs.
    """

    nodes: frozenset[str] = frozenset()
    draining: Mapping[str, float] = field(default_factory=dict)
    gpus: int = 0
    cpus: int = 1
    metrics: tuple[str, ...] = ()


@dataclass(slots=True)
class Orders:
    """What is to be done with workers, by name, in this order. start: what makes one, by pickle, and Ray's options."""

    kill: list[str] = field(default_factory=list)
    start: dict[str, tuple[bytes, dict[str, Any]]] = field(default_factory=dict)
    drain: dict[str, float] = field(default_factory=dict)  # seconds
    ask: dict[str, Sequence[ShardTask]] = field(default_factory=dict)  # tasks given with the question
