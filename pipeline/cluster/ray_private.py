"""What Ray knows and tells by no public name: this process' node, draining nodes, drivers and actors.

The only file that uses private names of Ray; `tests/test_private_names.py` says which versions have them.
"""

from typing import Any

import ray


def own_node() -> tuple[str, str]:
    """The raylet's socket and the address of the GCS, as this process is connected; empty where Ray does not say."""
    node = ray._private.worker._global_node
    return (node.raylet_socket_name or "", node.gcs_address or "") if node else ("", "")


def draining_nodes() -> dict[str, int]:
    """By node the time it ends, in milliseconds since 1970; 0 where that is open. Ray's own libraries ask so."""
    nodes: dict[str, int] = ray._private.state.state.get_draining_nodes()
    return nodes


def drivers() -> list[dict[str, Any]]:
    """All jobs of the cluster, as `ray list jobs` has them, which needs a dashboard."""
    jobs: list[dict[str, Any]] = ray._private.state.state.job_table()
    return jobs


def living_actors(job: str) -> list[dict[str, Any]]:
    """The actors of a job that are alive. job: its id in hexadecimal."""
    return list(ray._private.state.state.actor_table(None, ray.JobID.from_hex(job), "ALIVE").values())
