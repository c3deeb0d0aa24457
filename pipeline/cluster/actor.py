"""A worker as a Ray actor: one for each GPU, or for a share of the CPUs where there are none."""

import os
import pickle
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace

import ray

from pipeline.cluster.metrics import WorkerMetrics
from pipeline.logs.context import bind
from pipeline.logs.records import collect
from pipeline.messages import ShardTask
from pipeline.searchpath import settle
from pipeline.storage import retry
from pipeline.worker.host import Report, WorkerHost

NOTICE_S = 25.0  # for a worker to leave after a SIGTERM: the shortest notice of a spot machine is 30


class LabelActor:
    """A worker's host in a process of Ray."""

    def __init__(self, worker: bytes) -> None:
        """worker: its settings and what builds it, by pickle."""
        settle()
        settings, build = pickle.loads(worker)
        bind(**asdict(settings.context))
        self._log = collect(settings.log_level)
        self._metrics = WorkerMetrics(settings.context.labels)
        if not settings.gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # Ray hides no GPU from an actor that asked for none
        self._node = ray.get_runtime_context().get_node_id()
        self._host = WorkerHost(lambda: build(settings))
        signal.signal(signal.SIGTERM, lambda *_: self._host.drain(NOTICE_S))

    def exchange(self, tasks: Sequence[ShardTask], wait_s: float) -> Report:
        """See WorkerHost.exchange."""
        report = self._host.exchange(tasks, wait_s)
        self._metrics.publish(report.made)
        report.made.retries = retry.retries()
        return replace(report, node=self._node, log=self._log.take())

    def drain(self, seconds: float) -> None:
        """See WorkerHost.drain."""
        self._host.drain(seconds)
