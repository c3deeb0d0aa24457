"""A Ray of several nodes on this machine, each a process group of its own, started by the commands of the manifests."""

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.processes.servers import free_ports

BIN = Path(sys.executable).parent


@dataclass
class Node:
    """One `ray start --block`. process: the leader of its group."""

    process: subprocess.Popen[bytes]
    log: Path
    metrics_port: int

    def kill(self) -> None:
        """The machine is gone: every process of the node at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> None:
        """What the kubelet does to the first process of a container."""
        self.process.send_signal(signal.SIGTERM)


@dataclass
class Cluster:
    """A head that labels nothing, and its workers."""

    folder: Path
    environment: dict[str, str]
    port: int
    dashboard: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def jobs(self) -> str:
        """Where `ray job submit` goes."""
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, *arguments: str) -> Node:
        """Another node."""
        agent, metrics, runtime = free_ports(3)
        command = [str(BIN / "ray"), "start", *arguments, "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--metrics-export-port={metrics}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--runtime-env-agent-port={runtime}"]
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as out:
            started = subprocess.Popen(
                command, stdout=out, stderr=out, env=self.environment, cwd=self.folder, start_new_session=True
            )
        self.nodes.append(Node(started, log, metrics))
        return self.nodes[-1]

    def worker(self) -> Node:
        """A node that labels, with one CPU, once it is there: two that start at once on one address cannot."""
        before = self.alive()
        node = self.start(f"--address=127.0.0.1:{self.port}", "--num-cpus=1", "--object-store-memory=100000000")
        self.wait_for(before + 1)
        return node

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of this environment, to its end."""
        return subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, check=check, timeout=300,
        )  # fmt: skip

    def submit(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, waiting for the end."""
        return self.run("ray", "job", "submit", f"--address={self.jobs}", "--", *entrypoint, check=False)

    def alive(self) -> int:
        """Nodes that Ray counts as alive."""
        said = self.run("python", "-c", _ALIVE, f"127.0.0.1:{self.port}", check=False)
        counts = [line.split()[1] for line in said.stdout.splitlines() if line.startswith("alive ")]
        return int(counts[0]) if counts else 0

    def wait_for(self, nodes: int, wait_s: float = 90) -> None:
        """Until so many nodes are alive."""
        end = time.monotonic() + wait_s
        while self.alive() != nodes:
            if time.monotonic() > end:
                logs = "\n".join(node.log.read_text()[-1500:] for node in self.nodes)
                raise RuntimeError(f"no {nodes} nodes in {wait_s} s: {logs}")
            time.sleep(0.5)


_ALIVE = """
import sys
import ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print("alive", sum(node["Alive"] for node in ray.nodes()), flush=True)
"""


@contextmanager
def cluster(environment: dict[str, str], cpus: int = 0) -> Iterator[Cluster]:
    """A head, which labels nothing unless it is given CPUs, gone with everything it started when the block ends."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:  # sockets want short paths
        port, dashboard, client = free_ports(3)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
        path = {"PATH": f"{BIN}:{os.environ['PATH']}"}
        made = Cluster(Path(folder), {**os.environ, **environment, **token, **path}, port, dashboard)
        try:
            head = ["--head", f"--num-cpus={cpus}", "--num-gpus=0", f"--port={port}", f"--temp-dir={folder}/ray"]
            head += [
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
            ]
            made.start(*head, "--object-store-memory=100000000")
            made.wait_for(1)
            yield made
        finally:
            for node in reversed(made.nodes):
                if node.process.poll() is None:
                    node.kill()
