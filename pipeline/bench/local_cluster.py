"""A Ray cluster of several nodes on this machine, each a process group of its own, so that one can be lost as a machine
is.

Nodes that others may join listen on every network interface; these refuse whoever does not have their token.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.process import environment
from pipeline.searchpath import child_environment

STORE_BYTES = 80_000_000  # of a node's object store: no pixels pass through it


@dataclass
class Nodes:
    """A head that labels nothing, and numbered nodes of one CPU each: node n has the Ray resource `node-<n>`."""

    folder: Path
    port: int
    running: dict[int, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    started: int = 0

    @property
    def address(self) -> str:
        """Where drivers connect to."""
        return f"127.0.0.1:{self.port}"

    def add(self) -> int:
        """Start a node; it joins some seconds later."""
        number = self.started
        self.started += 1
        self._start(number, f"--address={self.address}", "--num-cpus=1", f'--resources={{"node-{number}": 1}}')
        return number

    def add_head(self) -> None:
        """Start the head."""
        self._start(-1, "--head", "--num-cpus=0", f"--port={self.port}", "--include-dashboard=false")

    def _start(self, number: int, *arguments: str) -> None:
        command = [str(Path(sys.executable).parent / "ray"), "start", *arguments, "--block", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={STORE_BYTES}", "--num-gpus=0"]
        command += [f"--temp-dir={self.folder}/r"] if number < 0 else []
        with (self.folder / f"node-{number}.log").open("wb") as log:
            self.running[number] = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | child_environment()
            )

    def kill(self, number: int) -> None:
        """Kill every process of a node at once, as if its machine were gone."""
        node = self.running.pop(number)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def last_words(self) -> str:
        """The last words of every node."""
        return "\n".join(log.read_text("utf-8", "replace")[-800:] for log in sorted(self.folder.glob("node-*.log")))


@contextmanager
def private_nodes() -> Iterator[Nodes]:
    """A head, which ends with the block, and so does every node that was added. Sets the Ray token of this process."""
    from pipeline.cluster.process.private import passing_folder

    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    with environment(token), passing_folder() as folder:
        nodes = Nodes(Path(folder), _free_port())
        try:
            nodes.add_head()
            yield nodes
        finally:
            for number in sorted(nodes.running, reverse=True):
                nodes.kill(number)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
