"""URLs and requests: one spelling for one place, nothing secret shown, only what may pass tried again."""

import errno
import io
import json

import pytest

from pipeline.errors import ConfigError, StorageError, StorageFull
from pipeline.storage import filesystem, retry
from pipeline.storage.ranged_reader import CHUNK, FIRST_CHUNK, RangedReader
from pipeline.storage.retry import attempt, retries
from pipeline.storage.url import canonical, protocol_of, redact, stem


@pytest.mark.parametrize(
    ("url", "protocol"),
    [
        ("photos.tar", "file"),
        ("./a/b.tar", "file"),
        ("/a/b:c.tar", "file"),
        ("file:///a/b.tar", "file"),
        ("s3://b/k", "s3"),
        ("s3a://b/k", "s3"),
        ("gcs://b/k", "gs"),
        ("az://c/k", "abfs"),
        ("abfss://c@a.dfs.core.windows.net/k", "abfs"),
        ("https://h/k?x=1", "https"),
    ],
)
def test_the_protocol_of_a_url(url, protocol):
    assert protocol_of(url) == protocol


@pytest.mark.parametrize(
    "url",
    ["pipe:cat x", "pipe://cat x", "nosuch://x", "s3:/b/k", "zip://a::s3://b/k", "simplecache://s3://b", "data:,x"],
)
def test_what_may_not_be_opened_is_refused_with_what_may(url):
    with pytest.raises(ConfigError, match=r"s3://|chained"):
        protocol_of(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://b/a.tar?versionId=1", "s3://b/a.tar"),
        ("https://user:secret@h/a.tar?sig=secret#x", "https://h/a.tar"),
        ("abfs://box@account.dfs.core.windows.net/a.tar?sas=1", "abfs://box@account.dfs.core.windows.net/a.tar"),
        ("s3://b/a#1.tar", "s3://b/a#1.tar"),
        ("s3://b/a@1.tar", "s3://b/a@1.tar"),
        ("/a/b?c#d.tar", "/a/b?c#d.tar"),
    ],
)
def test_what_is_secret_is_not_shown(url, shown):
    assert redact(url) == shown


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("s3://b/a.tar", "s3a://b/a.tar", True),
        ("az://c/a.tar", "abfs://c/a.tar", True),
        ("https://h/a.tar?sig=1", "https://h/a.tar?sig=2", True),
        ("s3://b/run", "s3://b/run/", True),
        ("s3://b/x/a.tar", "s3://b/y/a.tar", False),
        ("s3://b/x//a.tar", "s3://b/x/a.tar", False),
        ("s3://b/a#1.tar", "s3://b/a#2.tar", False),
        ("az://c@one.dfs.core.windows.net/a", "az://d@one.dfs.core.windows.net/a", False),
    ],
)
def test_one_place_has_one_spelling(one, other, same):
    assert (canonical(one) == canonical(other)) is same


def test_a_local_path_is_made_absolute_whatever_way_it_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    spellings = ("a.tar", "./x/../a.tar", f"file://{tmp_path}/a.tar", "link/a.tar", str(tmp_path / "a.tar"))
    assert {canonical(url) for url in spellings} == {f"file://{tmp_path}/a.tar"}


def test_a_stem_is_a_name_that_any_file_system_takes():
    assert stem("s3://b/x/träin 0.v2.tar.gz") == "tr_in_0"
    assert stem("s3://b/.tar") == "shard"
    assert len(stem("s3://b/" + "x" * 300 + ".tar")) == 80


# -- requests ------------------------------------------------------------------------------------------------------


class Reply(Exception):
    """An HTTP library's error."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.status = status


class Refused(Exception):
    """Keeps what a store answered, as botocore's errors do."""

    def __init__(self, code, status):
        super().__init__(code)
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def boto(code, status, kind=OSError):
    cause = Refused(code, status)
    error = kind(errno.EINVAL, "said the store") if kind is OSError else kind("said the store")
    error.__cause__ = cause
    return error


class Failing:
    """Fails as told, then answers."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(retry, "wait_random_exponential", lambda **_: lambda state: 0.0)


PASSING = [
    Reply(503),
    Reply(500),
    Reply(429),
    Reply(408),
    boto("SlowDown", 503),
    boto("OperationAborted", 409),
    boto("BadDigest", 400),
    boto("RequestTimeout", 400, TimeoutError),
    ConnectionResetError(),
    TimeoutError(),
    OSError(errno.EIO, "io"),
    OSError(errno.ESTALE, "stale"),
    json.JSONDecodeError("cut", "{", 1),
    Exception("a library's own"),
]
FINAL = [
    (Reply(403), ConfigError),
    (Reply(400), ConfigError),
    (PermissionError("denied"), ConfigError),
    (OSError("Forbidden: x"), ConfigError),
    (boto("ExpiredToken", 400, PermissionError), ConfigError),
    (boto("NoSuchBucket", 404, FileNotFoundError), FileNotFoundError),
    (FileNotFoundError("x"), FileNotFoundError),
    (boto("PreconditionFailed", 412), FileExistsError),
    (FileExistsError("x"), FileExistsError),
    (OSError(errno.ENOSPC, "full"), StorageFull),
    (Reply(507), StorageFull),
    (OSError(errno.EROFS, "read-only"), ConfigError),
    (NotADirectoryError("x"), ConfigError),
    (NotImplementedError(), ConfigError),
    (ValueError("no such account"), ConfigError),
    (KeyError("ours"), KeyError),
    (TypeError("ours"), TypeError),
]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_what_may_pass_is_tried_again_and_counted(error):
    before, call = retries(), Failing(error, error)
    assert attempt("s3://b/k", call) == "answer"
    assert call.calls == 3
    assert retries() - before == 2


@pytest.mark.parametrize(("error", "kind"), FINAL, ids=repr)
def test_what_will_not_pass_is_tried_once_and_named(error, kind):
    call = Failing(error)
    with pytest.raises(kind):
        attempt("s3://b/k", call)
    assert call.calls == 1


class WebReply(Reply):
    """As aiohttp raises it, beneath fsspec."""


WebReply.__module__ = "aiohttp.client_exceptions"


@pytest.mark.parametrize(("status", "tried"), [(503, 2), (404, 1)])
def test_a_web_server_that_is_away_is_not_a_file_that_is_gone(status, tried):
    error = FileNotFoundError("https://h/a.tar")
    error.__cause__ = WebReply(status)
    call = Failing(error)
    if status == 404:
        with pytest.raises(FileNotFoundError):
            attempt("https://h/a.tar", call)
    else:
        assert attempt("https://h/a.tar", call) == "answer"
    assert call.calls == tried


def test_what_does_not_pass_in_time_is_a_storage_error(monkeypatch):
    monkeypatch.setattr(retry, "FIRST_DEADLINE", 0.0)
    monkeypatch.setattr(retry, "DEADLINE", 0.0)
    with pytest.raises(StorageError, match=r"s3://b/k: status 503"):
        attempt("s3://b/k", Failing(*[Reply(503)] * 100))


def test_a_place_that_never_answered_is_given_up_sooner(monkeypatch):
    asked = []

    def at_once(seconds):
        asked.append(seconds)
        return lambda state: True

    monkeypatch.setattr(retry, "stop_after_delay", at_once)
    with pytest.raises(StorageError):
        attempt("s3://new/k", Failing(TimeoutError()))
    attempt("s3://new/k", Failing())
    with pytest.raises(StorageError):
        attempt("s3://new/other", Failing(TimeoutError()))
    assert asked == [retry.FIRST_DEADLINE, retry.FIRST_DEADLINE, retry.DEADLINE]


@pytest.mark.parametrize(
    "message", ["403 at https://user:secret@h/x?sig=secret", "s3://b/x?token=secret failed", "'https://h/x?a=secret'"]
)
def test_errors_show_no_credentials(message):
    with pytest.raises(ConfigError) as caught:
        attempt("https://h/x", Failing(PermissionError(message)))
    assert "secret" not in str(caught.value)


# -- ranges --------------------------------------------------------------------------------------------------------


class Shelf:
    """A file system of one object that counts requests."""

    def __init__(self, data, knows_ranges=True):
        self.data, self.knows_ranges, self.requests, self.short = data, knows_ranges, [], 0

    def cat_file(self, path, start, end):
        self.requests.append((start, end))
        if not self.knows_ranges:
            return self.data
        if self.short:
            self.short -= 1
            return self.data[start : end - 1]
        return self.data[start:end]


DATA = bytes(range(256)) * (40 << 10)  # 10 MiB


def test_a_stream_of_ranges_reads_what_is_there():
    shelf = Shelf(DATA)
    stream = io.BufferedReader(RangedReader(shelf, "x", "x", len(DATA)))
    assert stream.read() == DATA
    sizes = [end - start for start, end in shelf.requests]
    assert sizes[0] == FIRST_CHUNK
    assert max(sizes) <= CHUNK
    assert len(sizes) < 8


def test_a_far_jump_fetches_little_and_a_near_one_reads_on():
    shelf = Shelf(DATA)
    stream = io.BufferedReader(RangedReader(shelf, "x", "x", len(DATA)), 512)
    for place in (0, 5 << 20, 9 << 20):
        stream.seek(place)
        assert stream.read(10) == DATA[place : place + 10]
    assert [end - start for start, end in shelf.requests] == [FIRST_CHUNK] * 3
    near = Shelf(DATA)
    stream = io.BufferedReader(RangedReader(near, "x", "x", len(DATA)), 512)
    for place in range(0, 10 << 20, 100 << 10):  # headers a hundred kilobytes apart
        stream.seek(place)
        assert stream.read(10) == DATA[place : place + 10]
    assert len(near.requests) < 10


def test_a_short_answer_is_asked_again():
    shelf = Shelf(DATA)
    shelf.short = 2
    before = retries()
    assert io.BufferedReader(RangedReader(shelf, "x", "x", len(DATA))).read(100) == DATA[:100]
    assert retries() - before == 2


def test_a_server_that_knows_no_ranges_is_understood():
    shelf = Shelf(DATA, knows_ranges=False)
    stream = io.BufferedReader(RangedReader(shelf, "x", "x", len(DATA)))
    stream.seek(1000)
    assert stream.read(10) == DATA[1000:1010]


def test_an_object_that_vanishes_while_it_is_read_is_a_storage_error():
    class Gone(Shelf):
        def cat_file(self, path, start, end):
            raise FileNotFoundError(path)

    with pytest.raises(StorageError, match="gone"):
        RangedReader(Gone(b""), "x", "x", 10).read(1)


def test_a_file_that_is_written_again_has_another_version(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"12")
    first = filesystem.stat(str(path))
    path.write_bytes(b"34")
    assert filesystem.stat(str(path)) != first
