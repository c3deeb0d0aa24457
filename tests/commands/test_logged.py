"""--log-file, --verbose and DIFFSEG_LOG: where a command's log goes, and that a terminal shows none unasked."""

import re

import pytest

from jobs.shared import cli

LINE = re.compile(r"^\d{4}-\d\d-\d\dT[\d:.]+Z (DEBUG|INFO|WARNING|ERROR) \S+ \S+ \S+ \S+ [\w.]+:\d+ .*$", re.M)


@pytest.fixture
def damaged(ledger, build):
    """A run whose only window is no Parquet."""
    [first, *_] = ledger.shards
    ledger.store.put_new(f"labels/{first}.000000.parquet", b"no Parquet")
    return str(ledger)


def verify(run, *more):
    """`verify` writes about what it finds at the level debug."""
    assert cli.run(["verify", run, *more]) == 1


def test_a_terminal_shows_no_log_unless_it_is_asked_for(damaged, monkeypatch, capsys):
    verify(damaged)
    plain = capsys.readouterr()
    assert not LINE.search(plain.err)

    verify(damaged, "-v")  # shows from info on
    assert capsys.readouterr() == plain

    monkeypatch.setenv("DIFFSEG_LOG", "debug")
    for flag in ([], ["--verbose"]):
        verify(damaged, *flag)
        out, err = capsys.readouterr()
        assert out == plain.out
        assert "Traceback (most recent call last)" in err
        line = LINE.search(err)
        assert line is not None
        assert "pipeline.run.verify:" in line[0]


def test_the_log_goes_to_a_file_that_a_variable_or_a_flag_names(damaged, tmp_path, monkeypatch, capsys):
    verify(damaged)
    plain = capsys.readouterr()
    monkeypatch.setenv("DIFFSEG_LOG", f"debug:{tmp_path / 'a.txt'}")
    verify(damaged)
    verify(damaged, "--log-file", str(tmp_path / "b.txt"))
    assert capsys.readouterr() == (2 * plain.out, 2 * plain.err)
    for name in ("a.txt", "b.txt"):
        assert LINE.search((tmp_path / name).read_text())


@pytest.mark.parametrize("value", ["loud", "debug:", ":x"])
def test_a_variable_that_makes_no_sense_is_refused(value, damaged, monkeypatch, capsys):
    monkeypatch.setenv("DIFFSEG_LOG", value)
    assert cli.run(["verify", damaged]) == 2
    assert (
        capsys.readouterr().err
        == f"diffseg: DIFFSEG_LOG is one of debug, info, warning, error, alone or with :PATH, not {value}\n"
    )


def test_a_log_file_that_cannot_be_written_ends_the_command_before_work_begins(damaged, tmp_path, capsys):
    path = tmp_path / "no" / "log.txt"
    assert cli.run(["verify", damaged, "--log-file", str(path)]) == 2
    assert capsys.readouterr() == ("", f"diffseg: the log file {path} cannot be written: No such file or directory\n")


def test_what_ends_a_command_is_logged(tmp_path, capsys):
    log = tmp_path / "log.txt"
    assert cli.run(["verify", str(tmp_path / "none"), "--log-file", str(log)]) == 2
    [line] = log.read_text().splitlines()
    assert "ERROR" in line
    assert "no run here" in line
    assert "no run here" in capsys.readouterr().err
