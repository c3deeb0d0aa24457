"""Trying again: which failures of storage may pass, how long they are waited for, and what the others mean.

The libraries' own retries are off (see storage), so that one deadline holds and every repeated request is counted.
"""

import errno
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from pipeline.errors import ConfigError, StorageError, StorageFull
from pipeline.logs.traces import redacted

DEADLINE = 120.0  # seconds a request is tried again before the work around it fails
FIRST_DEADLINE = 12.0  # the same for a place that has never answered: a wrong address must fail in seconds

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FINAL = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP, errno.EFBIG}
_REFUSED = (PermissionError, IsADirectoryError, NotADirectoryError)
_NO_CREDENTIALS = {
    "NoCredentialsError": "no credentials for this storage were found",
    "PartialCredentialsError": "the credentials for this storage are incomplete",
    "DefaultCredentialsError": "no credentials for this storage were found",
    "CredentialRetrievalError": "the credentials for this storage could not be had",
    "ClientAuthenticationError": "the credentials for this storage were not accepted",
    "ParamValidationError": "a name that this storage does not allow",
}
_BUGS = (TypeError, AttributeError, LookupError, AssertionError)
_PASSING_STATUS = {408, 409, 425, 429}  # beside those of 500 and above
_FULL_STATUS = 507
_DAMAGED_ON_THE_WAY = {"BadDigest", "IncompleteBody", "InvalidDigest", "RequestTimeout", "XAmzContentSHA256Mismatch"}

T = TypeVar("T")
Send = Callable[[str, Callable[[], Any]], Any]  # makes a request; the string is its URL or path, redacted
logger = logging.getLogger(__name__)


class _Memory:
    """What this process has learnt of storage."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.retries = 0
        self.answered: set[str] = set()
        self.send: Send = lambda what, call: call()


_memory = _Memory()


def retries() -> int:
    """Requests this process has sent once more, so far."""
    return _memory.retries


@contextmanager
def sent_by(send: Send) -> Iterator[None]:
    """While the block runs, `send` makes every request of this process."""
    before, _memory.send = _memory.send, send
    try:
        yield
    finally:
        _memory.send = before


def attempt(what: str, call: Callable[[], T], deadline: float | None = None) -> T:
    """Do `call`, again while it fails in a way that may pass. what: the URL or path, redacted, as errors name it.

    deadline: in seconds; None: DEADLINE, or FIRST_DEADLINE for a place that has not answered yet.
    Raises FileNotFoundError and FileExistsError as they are, ConfigError where access is refused, StorageFull where
    space ran out, StorageError for everything that outlasted the deadline.
    """
    failed: list[Exception] = []

    def sent_again(state: RetryCallState) -> None:
        if state.outcome and isinstance(error := state.outcome.exception(), Exception):
            failed.append(error)
        with _memory.lock:
            _memory.retries += 1

    place = "/".join(what.split("/", 3)[:3])
    patience = deadline if deadline is not None else DEADLINE if place in _memory.answered else FIRST_DEADLINE
    retrying = Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_random_exponential(multiplier=0.2, max=15),
        stop=stop_after_delay(patience),
        before_sleep=sent_again,
        reraise=True,
    )
    try:
        result: T = retrying(_request, what, call)
    except Exception as error:
        meaning = translate(what, error)
        if not isinstance(meaning, StorageError):
            _memory.answered.add(place)
        if meaning is error:
            raise
        raise meaning from error
    finally:
        if failed:
            logger.warning("%s: asked %d times, the last failure: %s", what, 1 + len(failed), _reason(failed[-1]))
    _memory.answered.add(place)
    return result


def _request(what: str, call: Callable[[], Any]) -> Any:
    """fsspec says of a web server that is away or refuses that the file is not there: what the server said counts."""
    try:
        return _memory.send(what, call)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause and type(cause).__module__.startswith("aiohttp") and _status(cause) not in (404, 410):
            raise cause from None
        raise


def translate(what: str, error: Exception) -> Exception:
    """A library's error as one of ours; FileNotFoundError, FileExistsError and programming errors stay as they are."""
    if isinstance(error, (FileNotFoundError, *_BUGS)) and not isinstance(error, NotImplementedError):
        return error
    if _is_conflict(error):
        return error if isinstance(error, FileExistsError) else FileExistsError(what)
    if _is_full(error):
        return StorageFull(f"{what}: no space left")
    if type(error).__name__ in _NO_CREDENTIALS:
        return ConfigError(f"{what}: {_NO_CREDENTIALS[type(error).__name__]} ({_reason(error)})")
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{what}: this kind of storage cannot do what is asked of it here")
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return ConfigError(f"{what}: access refused: {_reason(error)}")
    if not _may_pass(error):
        return ConfigError(f"{what}: {_reason(error)}")
    return StorageError(f"{what}: {_reason(error)}")


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, Exception) or isinstance(error, (*_BUGS, *_REFUSED, NotImplementedError)):
        return False
    if isinstance(error, FileNotFoundError) or _is_conflict(error) or _is_full(error):
        return False
    if type(error).__name__ in _NO_CREDENTIALS or str(error).startswith("Forbidden"):  # the latter: gcsfs' 403
        return False
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _PASSING_STATUS or _code(error) in _DAMAGED_ON_THE_WAY
    if isinstance(error, OSError) and error.errno in _FINAL:
        return False
    return not isinstance(error, ValueError) or isinstance(error, json.JSONDecodeError)  # a reply cut short


def _is_conflict(error: BaseException) -> bool:
    """Whether a create-only request lost: s3fs reports some stores' 412 as OSError 22, with the reply as its cause."""
    return isinstance(error, FileExistsError) or _status(error) == 412 or _code(error) in ("PreconditionFailed", "412")


def _is_full(error: BaseException) -> bool:
    return (isinstance(error, OSError) and error.errno in _FULL) or _status(error) == _FULL_STATUS


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, whichever library put it there; None for a body that came cut."""
    if type(error).__name__ == "ClientPayloadError":  # aiohttp gives a cut body a status that nobody sent
        return None
    for one in (error, error.__cause__):
        reply: Any = getattr(one, "response", None)
        if isinstance(reply, dict):
            reply = reply.get("ResponseMetadata", {}).get("HTTPStatusCode")
        said = (getattr(one, name, None) for name in ("status", "status_code", "code"))  # the last: aiohttp warns of it
        for value in chain(said, [reply]):
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _code(error: BaseException) -> str | None:
    reply = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    return reply.get("Error", {}).get("Code") if isinstance(reply, dict) else None


def _reason(error: Exception) -> str:
    """The first line of what a library says, without the queries and user names its URLs may carry."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    line = next((line.strip() for line in str(said).splitlines() if line.strip()), type(error).__name__)
    return redacted(line)[:300]
