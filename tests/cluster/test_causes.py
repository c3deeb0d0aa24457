"""Ray's texts, as it writes them, and the one line of each that tells why."""

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
    WorkerCrashedError,
)

from pipeline.cluster.causes import cause, last_words

DIED = """The actor died unexpectedly before finishing this task.
\tclass_name: LabelActor
\tactor_id: 37a2772f003cf3a2db93d20901000000
\tpid: 19325
\tnamespace: dd72b144-1f17-4d3e-88e6-fe4311f9579d
\tip: 192.0.2.2
"""
EXIT = "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
ADVICE = "Some common causes include: (1) the process was killed by the OOM killer due to high memory usage, (2) ..."
IN_CREATION = """The actor died because of an error raised in its creation task, \x1b[36mray::X()\x1b[39m (pid=19325)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/site/pipeline/worker.py", line 25, in build
    load(model)
    ^^^^^^^^^^^
"""
NOT_THERE = """RuntimeError: The actor with name LabelActor failed to import on the worker. This may be because needed \
library dependencies are not installed in the worker environment:

\x1b[36mray::LabelActor.__init__()\x1b[39m (pid=19509, ip=192.0.2.2, actor_id=24, repr=<X object at 0x7f053ba78250>)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""
CHAIN = """           ^^^
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

ray::LabelActor.__init__() (pid=19151)
  File "/a.py", line 25, in __init__
    raise OSError("libcuda.so.1: cannot open shared object file") from e
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
OSError: libcuda.so.1: cannot open shared object file
"""
MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.1.2.2, ID: fb) \
was 23.28GB used / 23.54GB limit (0.989)
OOM kill reason: Memory usage exceeded threshold
Top 10 memory users: PID\tMEM(GB)\tCOMMAND
20261\t0.54\tpython
Refer to the documentation on how to address the out of memory issue.
"""
SETUP = """Could not create the actor because its associated runtime env failed to be created.
[Node 192.0.2.2] Traceback (most recent call last):
  File "/site/urllib3/connection.py", line 239, in _new_conn
    sock = connection.create_connection(
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ConnectionRefusedError: [Errno 111] Connection refused

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/site/requests/adapters.py", line 729, in send
    raise ConnectionError(e, request=request)
requests.exceptions.ConnectionError: cannot reach 127.0.0.1:1

"""


def died(text):
    error = ActorDiedError()
    error.error_msg = text
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (died(IN_CREATION + "ValueError: no such dtype\nas you gave"), "ValueError: no such dtype"),
        (died(IN_CREATION + CHAIN), "OSError: libcuda.so.1: cannot open shared object file"),
        (
            died(IN_CREATION + NOT_THERE + "ModuleNotFoundError: No module named 'pipeline.cluster'; it is no package"),
            "ModuleNotFoundError: No module named 'pipeline.cluster'; it is no package: this project is not installed "
            "there, or something else has its name",
        ),
        (
            died(IN_CREATION + NOT_THERE + "ModuleNotFoundError: No module named 'av'"),
            "ModuleNotFoundError: No module named 'av'",
        ),
        (
            died(DIED + EXIT + "Worker exits unexpectedly. Worker exits with an exit code 7."),
            "ActorDiedError: Worker exits unexpectedly. Worker exits with an exit code 7.",
        ),
        (
            died(f"{DIED}{EXIT}Connection error code 2. End of file. {ADVICE}\nThe actor never ran - it was cancelled"),
            "ActorDiedError: Connection error code 2. End of file. (killed, crashed, or out of memory)",
        ),
        (
            died(DIED + "The actor died because its node has died. Node Id: 5f2a"),
            "ActorDiedError: The actor died because its node has died. Node Id: 5f2a",
        ),
        (
            OutOfMemoryError(MEMORY),
            "OutOfMemoryError: 1 worker(s) were killed due to the node running low on memory. Memory on the node was "
            "23.28GB used / 23.54GB limit (0.989)",
        ),
        (
            ActorUnschedulableError(
                "Could not create the actor because worker startup repeatedly failed.\n"
                "Failed to startup worker after retrying 5 times. Look at the raylet.err on node 00f3."
            ),
            "ActorUnschedulableError: Failed to startup worker after retrying 5 times. Look at the raylet.err on node "
            "00f3.",
        ),
        (RuntimeEnvSetupError(SETUP), "requests.exceptions.ConnectionError: cannot reach 127.0.0.1:1"),
        (RuntimeEnvSetupError("no space left on device"), "RuntimeEnvSetupError: no space left on device"),
        (
            WorkerCrashedError(),
            "WorkerCrashedError: The worker died unexpectedly while executing this task. Check "
            "python-core-worker-*.log files for more information.",
        ),
        (ValueError("Attempting to cap object store memory"), "ValueError: Attempting to cap object store memory"),
        (RuntimeError(), "RuntimeError: "),
    ],
)
def test_the_last_cause_is_told_in_one_line(error, expected):
    assert cause(error) == expected


def test_a_line_has_an_end():
    assert len(cause(ValueError("x" * 10_000))) == 400


def test_the_last_words_of_a_process_are_its_exception_or_its_last_line():
    loader = "python: error while loading shared libraries: libz.so.1: cannot open shared object file"
    assert last_words(f"a warning\n{loader}\n\n") == loader
    assert last_words(
        'Traceback (most recent call last):\n  File "a.py", line 1, in <module>\n    x\nNameError: x\n'
    ) == ("NameError: x")
    assert last_words("") == ""
