"""Log records: where they come from, what of them is kept, how they reach a file."""

import logging
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.concurrency import prefetch_map
from pipeline.errors import ConfigError, CorruptShard, Unhandled
from pipeline.logs import context, records, text
from pipeline.logs.records import Buffer, replay, written
from pipeline.messages import ShardTask
from pipeline.storage import retry
from pipeline.worker.committer import failure_of

logger = logging.getLogger("pipeline.tested")


@pytest.fixture
def buffer(monkeypatch):
    """What this process logs, as a worker keeps it."""
    made = Buffer()
    root = logging.getLogger("pipeline")
    root.addHandler(made)
    monkeypatch.setattr(root, "level", logging.DEBUG)
    yield made
    root.removeHandler(made)


def fail(number: int = 0) -> None:
    raise ValueError(f"number {number}")


def failing(error: type[Exception] = ValueError) -> Exception:
    """An error that was raised."""
    try:
        fail()
    except error as raised:
        return raised
    raise AssertionError


def test_a_record_carries_the_context_of_the_thread_that_made_it(buffer):
    def work(item: int) -> None:
        with context.bound(window=item):
            logger.warning("at %d", item)

    with context.bound(run="r", worker="worker 3", shard="s"):
        list(prefetch_map(work, range(2), depth=2, threads=2))
    logger.warning("afterwards")

    *two, last = buffer.take()
    found = {(one.context.run, one.context.worker, one.context.shard, one.context.window) for one in two}
    assert found == {("r", "worker 3", "s", "0"), ("r", "worker 3", "s", "1")}
    assert last.context == context.Context()


def test_an_error_keeps_the_context_it_was_raised_in(buffer):
    try:
        with context.bound(shard="s", window=7):
            fail()
    except ValueError:
        logger.exception("later")
    [record] = buffer.take()
    assert (record.context.shard, record.context.window) == ("s", "7")


def test_a_line_has_each_field_in_its_place(buffer):
    with context.bound(run="first-1a2b", worker="worker 3", node="0123456789abcdef", shard="s-0", window=5):
        logger.error("two\nlines")
    [record] = buffer.take()
    time, *fields = str(record).split(" ")
    assert time.endswith("Z")
    assert fields[:5] == ["ERROR", "first-1a2b", "worker-3", "0123456789ab", "s-0/5"]
    assert fields[5].startswith("pipeline.tested:")
    assert fields[6:] == ["two", "lines"]


def test_repeats_are_counted_and_other_errors_of_one_line_are_not_taken_for_them(buffer):
    same = [failing(), failing()]
    for number in range(512):
        logger.error("sample %d", number, exc_info=same[number % 2])
    logger.error("another line")
    try:
        int("x")
    except ValueError as other:
        for _ in range(2):
            logger.error("sample %d", -1, exc_info=other)

    kept = [one.message for one in buffer.take()]
    assert kept == [*(f"sample {number}" for number in range(5)), "another line", "sample -1", "sample -1"]
    buffer.tell(last=True)
    [told] = buffer.take()
    assert (told.repeated, told.traceback) == (507, "")
    assert str(told).endswith("(repeated 507 times)")
    assert not buffer._kinds


def test_what_a_process_keeps_is_bounded(buffer, monkeypatch):
    monkeypatch.setattr(records, "MOST", 10)
    for number in range(1000):
        logging.getLogger(f"pipeline.tested.m{number}").error("x" * 5000)
    assert len(buffer._kinds) == records.KINDS + 1
    taken = buffer.take()
    assert len(taken) == 10
    assert all(len(pickle.dumps(one)) < 1500 for one in taken)


def test_records_of_a_worker_come_to_the_drivers_log_and_are_counted_there(buffer, tmp_path):
    path = tmp_path / "log.txt"
    logger.error("from the worker", exc_info=failing())
    [record] = pickle.loads(pickle.dumps(buffer.take()))
    logging.getLogger("pipeline").removeHandler(buffer)
    with written(logging.INFO, path, print, shown=False):
        for number in range(1000):
            replay([record], worker=f"worker {number}", node="n")

    text = path.read_text()
    assert text.count("from the worker") == 6
    assert "worker-0 n - pipeline.tested:" in text
    assert text.endswith("(repeated 995 times)\n")
    assert text.count("ValueError: number 0") == 5


def test_a_program_that_uses_the_package_has_the_records_in_its_own_handlers(buffer, caplog):
    logger.warning("as %s", "ever", exc_info=failing())
    sent = buffer.take()
    caplog.clear()
    replay(sent)
    [record] = caplog.records
    assert (record.name, record.getMessage(), record.levelno) == ("pipeline.tested", "as ever", logging.WARNING)
    assert "ValueError: number 0" in caplog.text


def test_a_record_that_cannot_be_made_costs_no_work(buffer, capsys):
    buffer.handle(logging.LogRecord("pipeline.tested", logging.ERROR, "x.py", 1, "%d samples", ("no number",), None))
    logger.error("the next one")
    assert [record.message for record in buffer.take()] == ["the next one"]
    assert "Logging error" in capsys.readouterr().err  # told as Python's own handlers tell it


def test_nothing_is_written_where_nobody_asked_for_it(capsys):
    logger.error("unheard")
    assert capsys.readouterr().err == ""


def test_a_traceback_is_short_and_holds_no_secret():
    try:
        try:
            raise OSError("https://me:secret@host/a?sig=abc refused" + "x" * 10_000)
        except OSError as cause:
            raise CorruptShard("s3://b/c?versionId=1: bad", 3) from cause
    except CorruptShard as error:
        told, at = text.traceback_of(error), text.raised_at(error)
    assert len(told) <= text.TRACEBACK
    assert "me:secret" not in text.shown("see https://me:secret@host/a?sig=abc\x1b[2J for more")
    assert "sig" not in text.shown("see https://me:secret@host/a?sig=abc\x1b[2J for more")
    assert "versionId" not in told
    assert at.startswith("tests/logs/test_records.py:")
    assert text.told(failing()) == f"ValueError: number 0 ({text.raised_at(failing())})"


def test_a_failure_with_its_traceback_stays_below_its_documented_size(shards):
    def deep(level: int) -> None:
        if level:
            deep(level - 1)
        raise Unhandled("é" * 100_000)

    with pytest.raises(Unhandled) as raised:
        deep(200)
    failure = failure_of(ShardTask(shards[0]), raised.value)
    assert failure.traceback
    assert f"tests/logs/test_records.py:{deep.__code__.co_firstlineno + 3})" in failure.error
    assert len(pickle.dumps(failure)) < 6_000


def test_the_owner_is_told_by_flag_variable_or_login(monkeypatch):
    monkeypatch.setenv("LOGNAME", "ada")
    monkeypatch.delenv("DIFFSEG_OWNER", raising=False)
    assert context.owner() == "ada"
    monkeypatch.setenv("DIFFSEG_OWNER", "team")
    assert context.owner() == "team"
    with context.bound(owner="x" * 100):
        assert context.owner() == "x" * context.LONGEST_OWNER


def test_a_log_that_cannot_be_written_is_told_before_anything_begins(tmp_path):
    with (
        pytest.raises(ConfigError, match="cannot be written: No such file"),
        written(logging.INFO, tmp_path / "no" / "log", print, shown=False),
    ):
        raise AssertionError("work has begun")


def test_a_disk_that_fills_up_ends_no_work_and_is_told_at_the_end(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    lines: list[str] = []
    with written(logging.INFO, Path("/dev/full"), lines.append, shown=False):
        logger.error("lost")
        assert not lines
    assert lines == ["diffseg: the log file /dev/full is not whole: No space left on device"]


def test_a_request_that_is_sent_again_is_logged_once(buffer, quick):
    answers: Iterator[Exception | bytes] = iter([*(ConnectionError("reset") for _ in range(3)), b"data"])

    def call() -> bytes:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert retry.attempt("s3://b/name", call) == b"data"
    [record] = buffer.take()
    assert record.message == "s3://b/name: asked 4 times, the last failure: reset"
