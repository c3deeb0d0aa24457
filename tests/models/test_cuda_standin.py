"""The stand-in CUDA device, and all that labels on it, in a process of their own: while the device is there, everything
in its process sees it. The tests themselves are `tests/support/cuda/cuda_rules.py` and `cuda_cases.py`.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "tests" / "support" / "cuda"
pytestmark = pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has the operators of a real device")


def run_apart(*arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(600)
def test_a_cuda_device_labels_as_the_processor_does_and_its_failures_are_told_apart():
    run_apart(CUDA / "cuda_rules.py", CUDA / "cuda_cases.py")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_model_labels_so_in_every_precision_with_every_configuration():
    run_apart(CUDA / "cuda_cases.py", "-m", "slow")
