"""Scripts that wait on machines: the notice of a spot machine, and a Slurm job from its start to its queueing again."""

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.run.ledger import Ledger
from tests.commands.test_cli import PHOTOS, small
from tests.conftest import write_shard
from tests.infra.test_infra import INFRA

BIN = Path(sys.executable).parent


def program(folder, name, text):
    """A stand-in on the PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


class Metadata(http.server.BaseHTTPRequestHandler):
    """A spot machine's metadata: no notice at first."""

    asked = 0

    def do_PUT(self):
        self.answer(b"token" if self.headers["X-aws-ec2-metadata-token-ttl-seconds"] else None)

    def do_GET(self):
        type(self).asked += self.path.endswith("/spot/instance-action")
        known = self.headers["X-aws-ec2-metadata-token"] == "token"
        self.answer(b'{"action": "terminate"}' if known and self.asked > 2 else None)

    def answer(self, body):
        self.send_response(200 if body else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_):
        pass


def test_the_notice_of_a_spot_machine_drains_its_node(tmp_path):
    program(tmp_path / "bin", "ray", f'echo "$@" > {tmp_path}/asked')
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "DIFFSEG_METADATA": f"http://127.0.0.1:{server.server_port}",
        "DIFFSEG_SPOT_POLL_S": "0.05",
    }
    try:
        subprocess.run([INFRA / "ray" / "spot.sh"], env=environment, check=True, timeout=30)
    finally:
        server.shutdown()
        server.server_close()
    assert Metadata.asked == 3
    said = (tmp_path / "asked").read_text()
    assert "drain-node --reason=DRAIN_NODE_REASON_PREEMPTION" in said
    assert "--deadline-remaining-seconds=110" in said


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_slurm_job_whose_time_is_up_is_queued_again_and_resumes(tmp_path):
    """One node, and stand-ins for Slurm's own programs: the Ray and the run are real."""
    for number in range(4):
        content = [(path.stem, {"jpg": small(path)}) for path in PHOTOS[3 * number : 3 * number + 3]]
        write_shard(tmp_path / "in" / f"p-{number}.tar", content)
    said = tmp_path / "said"
    program(tmp_path / "bin", "scontrol", f'echo "$@" >> {said}; [ "$1" = show ] && hostname; exit 0')
    program(tmp_path / "bin", "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{BIN}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "here",
        "SLURM_CPUS_PER_TASK": "1",
        "USER": "somebody",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(INFRA / "slurm" / "label.sbatch"), str(tmp_path / "in" / "p-{0..3}.tar"), "--model", "tiny"]
    command += ["--output", str(tmp_path / "run"), "--window", "1"]

    job = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert job.stderr is not None
    while not list((tmp_path / "run").glob("labels/*.parquet")):
        assert job.poll() is None, job.stderr.read()
        time.sleep(0.2)
    job.send_signal(signal.SIGTERM)
    _, log = job.communicate(timeout=120)
    assert job.returncode == 143, log
    assert f"requeue {environment['SLURM_JOB_ID']}" in said.read_text()
    assert "the same command resumes" in log

    said.unlink()
    again = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "complete: 12 rows, 12 ok" in again.stdout
    assert "requeue" not in said.read_text()
    assert len(list(Ledger.open(str(tmp_path / "run")).rows())) == 12
