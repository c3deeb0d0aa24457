"""What a chaos monkey asks of Ray: which processes it can kill, and to kill those of other machines."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.cluster import ray_private, ray_process


class KillHost(ray_process.RayServer):
    """The process that Ray is in, for a chaos monkey."""

    def workers_of(self, driver: int) -> list[tuple[str, int]]:
        """Node and process of the living actors of a driver on this machine: its child is the process Ray knows."""
        jobs = [job for job in ray_private.drivers() if _parent(job["DriverPid"]) == driver and not job["IsDead"]]
        actors = [actor for job in jobs for actor in ray_private.living_actors(job["JobID"])]
        return sorted((actor["Address"]["NodeID"], actor["Pid"]) for actor in actors)

    def nodes(self) -> tuple[str, dict[str, dict[str, float]]]:
        """The node this process is on, and the resources of every living node."""
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return ray.get_runtime_context().get_node_id(), alive

    def kill_on_node(self, node: str, pid: int | None) -> None:
        """Kill a process on a node of a user's cluster; None: the raylet, without which the node is lost."""

        def end(pid: int | None) -> None:
            os.kill(pid or os.getppid(), signal.SIGKILL)

        on_node = NodeAffinitySchedulingStrategy(node, soft=False)
        task = ray.remote(end).options(num_cpus=0, max_retries=0, scheduling_strategy=on_node)
        ray.wait([task.remote(pid)], timeout=20)


def serve() -> None:
    """Be the process that Ray is in."""
    ray_process.main(KillHost)


def _parent(pid: int) -> int:
    """The parent of a process; 0 where it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
