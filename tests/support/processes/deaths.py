"""A process of a run's Ray killed at a moment of a real `diffseg label`, and what became of the run.

    python -m tests.support.processes.deaths infra/benchmarks/deaths.md [PROCESS [MOMENT]]

brings the table at the end of a file up to this commit: every process and moment, or those named.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pipeline.run.ledger import Ledger
from tests.commands.test_signals import MARK, SECONDS, left_behind
from tests.conftest import jpeg, write_shard

PROCESSES = {  # by what their command line holds
    "raylet": "raylet/raylet ",
    "GCS": "gcs/gcs_server ",
    "dashboard agent": "ray::DashboardAgent",
    "runtime env agent": "ray::RuntimeEnvAgent",
    "dashboard": "dashboard/dashboard.py",
    "autoscaler monitor": "autoscaler/_private/monitor.py",
    "log monitor": "_private/log_monitor.py",
    "actor": "ray::LabelActor",
    "host": "pipeline.cluster.ray_process",
    "driver": "jobs.shared.cli",
}
ROOT = Path(__file__).resolve().parents[3]
MOMENTS = ("start-up", "mid-run", "last window")
IMAGES, WINDOW = 80, 4
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Death:
    """What became of a run. still_s: the longest without a new window from then on; ended_s: until its end."""

    process: str
    moment: str
    code: int
    still_s: float
    ended_s: float
    said: str
    left: list[str]  # processes and folders
    rerun: int
    rows: int
    twice: int
    images: int = IMAGES

    def line(self, commit: str = "") -> str:
        """Of the table."""
        told = [line for line in self.said.splitlines() if " again (" in line or "diffseg:" in line]
        cells = [
            self.process,
            self.moment,
            self.code,
            f"{self.still_s:.0f}",
            f"{self.ended_s:.0f}",
            f"{self.rows - self.twice} of {self.images}",
        ]
        return f"| {' | '.join(map(str, [*cells, len(self.left), '; '.join(told), commit]))} |\n"


def windows(run: Path) -> int:
    """How many are committed."""
    return len(list(run.glob("labels/*.parquet")))


def await_(condition, unless, wait_s=PATIENCE_S):
    """What a condition gives once it gives something, or something else has happened, or the time is over."""
    due = time.monotonic() + wait_s
    while not (found := condition()) and not unless() and time.monotonic() < due:
        time.sleep(0.02)
    return found


def found(process: str, mark: str) -> list[int]:
    """Processes of that kind that bear a mark."""
    return [pid for pid, words in left_behind(mark).items() if PROCESSES[process] in words]


def kill(
    process: str,
    moment: str,
    *options: str,
    cluster: tuple[str, dict[str, str]] | None = None,
    images: int = IMAGES,
    window: int = WINDOW,
) -> Death:
    """Label photos with two workers, kill a process, see how it ends, and do the same again where it did not.

    cluster: the mark of its processes and its environment, where the run is to be on one that is there.
    """
    folder = Path(tempfile.mkdtemp(prefix="deaths-", dir="/tmp"))  # Ray's sockets bear no long names
    mark, run = uuid.uuid4().hex, folder / "run"
    shard = write_shard(folder / "s.tar", [(f"{n:03d}", {"jpg": jpeg(n, (192, 128))}) for n in range(images)])
    words = [sys.executable, "-m", "jobs.shared.cli", "label", str(shard), "--output", str(run), "--model", "tiny"]
    words += ["--window", str(window), "--workers", "2", *options]
    there, environment = cluster or (mark, {})
    env = {**os.environ, **environment, MARK: mark, "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    with (folder / "said").open("w") as stream:
        command = subprocess.Popen(words, stdout=stream, stderr=stream, env=env, start_new_session=True)

    def ended() -> bool:
        return command.poll() is not None

    try:
        due = {"start-up": 0, "mid-run": 5, "last window": images // window - 1}[moment]
        await_(lambda: windows(run) >= due, ended)
        victims = await_(lambda: found(process, there), ended)
        assert victims, (folder / "said").read_text()
        began, clock = time.monotonic(), time.time()
        os.kill(victims[0], signal.SIGKILL)
        await_(lambda: left_behind(mark) and None, ended)  # whoever is started meanwhile is seen
        code = command.wait(PATIENCE_S)
        ended_s = time.monotonic() - began
        commits = [at for path in run.glob("labels/*.parquet") if (at := path.stat().st_mtime - clock) > 0]
        still_s = max((b - a for a, b in pairwise(sorted([0.0, *commits]))), default=ended_s)
        await_(lambda: not left_behind(mark), lambda: False, SECONDS)
        left, folders = left_behind(mark), [path.name for path in folder.glob("diffseg-*")]
        again = [*words, "--workers", "0"] if cluster else words
        rerun = subprocess.run(again, capture_output=True, env=env, timeout=PATIENCE_S).returncode if code else 0
        rows = [(row["shard"], row["index"]) for row in Ledger.open(str(run)).rows(["shard", "index"])]
        said = (folder / "said").read_text()
        return Death(
            process, moment, code, still_s, ended_s, said, [*left.values(), *folders], rerun, len(rows),
            len(rows) - len(set(rows)), images,
        )  # fmt: skip
    finally:
        command.kill()
        for pid in left_behind(mark):
            os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def commit() -> str:
    """Which code it is, in short."""
    words = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main(file: Path, processes: list[str], moments: list[str]) -> None:
    """A line a death, in the place of the one of another commit; what this one has is not done again."""
    now = commit()
    for process in processes or PROCESSES:
        for moment in moments or MOMENTS:
            lines = file.read_text().splitlines(keepends=True)
            begins = f"| {process} | {moment} |"
            old = next((number for number, line in enumerate(lines) if line.startswith(begins)), len(lines))
            if not any(line.endswith(f"| {now} |\n") for line in lines[old : old + 1]):
                lines[old : old + 1] = [kill(process, moment).line(now)]
                file.write_text("".join(lines))
                sys.stdout.write(lines[old])
                sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:3], sys.argv[3:4])
