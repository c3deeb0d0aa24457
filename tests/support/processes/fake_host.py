"""A process as the one that Ray is in, without a Ray: it answers, hangs, dies or refuses as a test wants it.

Each start does what the next word says, the last word counts for all that follow; how many there were is in a file.
"""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path


def main(place: str, *words: str) -> None:
    """Serve the line. place: a folder for notes."""
    starts = len(list(Path(place).glob("start-*")))
    Path(place, f"start-{starts}").write_text(sys.argv[2])  # the folder of its Ray
    act(Path(place), words[min(starts, len(words) - 1)])


def act(place: Path, word: str) -> None:
    """Do as one word says."""
    if word == "dies":
        raise SystemExit("Ray's last words")
    if word == "cannot be imported":
        raise ImportError("libcuda.so.1: cannot open shared object file")
    if word == "unborn":  # processes of its workers end as they begin
        logs = Path(sys.argv[2], "r", "session_latest", "logs")
        logs.mkdir(parents=True)
        ended = subprocess.Popen(["true"])
        ended.wait()
        (logs / "raylet.err").write_text("libz.so.1: cannot open shared object file\n")
        (logs / "raylet.out").write_text(f"Started worker process with pid {ended.pid}\n")
    if word in ("hangs", "unborn"):
        time.sleep(60)
    from pipeline.cluster.messages import ClusterState, Failed, RayStart
    from pipeline.cluster.process.line import Line  # takes the better part of a second

    line = Line(socket.socket(fileno=int(sys.argv[1])))
    if word == "leaves":  # a process that has nobody any more
        subprocess.Popen(["sh", "-c", "sleep 60 & echo $! > $0", str(place / "left")]).wait()
    while True:
        try:
            number, name, given = line.receive(None)
        except EOFError:
            return
        if name == "begin":
            refused = "bad luck" if word in ("refuses", "refuses for good") else ""
            gcs = os.environ.get("FAKE_GCS", "")
            line.send((number, RayStart(str(place / "raylet"), gcs, refused, permanent=word == "refuses for good")), 5)
        elif name == "look":
            line.send((number, ClusterState(cpus=3)), 5)
        elif name == "echo":
            line.send((number, given), 5)
        elif name == "late":
            time.sleep(given[0])
            line.send((number, "late"), 5)
        elif name == "fail":
            line.send((number, Failed("no such thing")), 5)
