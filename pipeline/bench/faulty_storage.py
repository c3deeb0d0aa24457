"""Storage that breaks on purpose, of whatever kind it is: a share of all requests fails as the real libraries fail.

It makes every request of this process (`retry.sent_by`), so that no kind of storage needs a double of its own.
"""

import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline.storage.url import protocol_of

FAULTS = ("503", "reset before", "slow", "cut in the body", "stored then reset")
SLOW_S = 0.5
OUTAGE_SHARE = 0.05  # of all faults: each begins an outage, in which every request fails


class Refused(Exception):
    """The server answered with a status. response: where botocore keeps it."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"An error occurred ({code}): Please reduce your request rate.")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


class FaultyStorage:
    """Makes requests, or fails to. rate: share that fails, drawn by seed. outage_s: length of an outage; 0: none."""

    def __init__(self, rate: float, seed: int, outage_s: float = 0.0) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate is a share of requests in [0, 1), got {rate}")
        self.rate, self.outage_s = rate, outage_s
        self.seen: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._out_until = 0.0

    def __call__(self, what: str, call: Callable[[], Any]) -> Any:
        """Make a request, or raise or cut as the fault drawn for it does."""
        fault = self._draw()
        if fault:
            self.seen[fault] += 1
        match fault:
            case "503":
                raise refusal(what)
            case "reset before":
                raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
            case "slow":
                time.sleep(SLOW_S)
        result = call()
        if fault == "cut in the body" and isinstance(result, bytes):
            return result[: len(result) // 2]
        if fault in ("cut in the body", "stored then reset"):
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        return result

    def _draw(self) -> str | None:
        if time.monotonic() < self._out_until:
            return "503"
        if self._rng.random() >= self.rate:
            return None
        if self._rng.random() < OUTAGE_SHARE:
            self._out_until = time.monotonic() + self.outage_s
        return self._rng.choice(FAULTS)


def refusal(what: str) -> Exception:
    """A 503 as the library of this kind of storage raises it; a local disk knows none, and fails to read or write."""
    refused = Refused(503, "SlowDown")
    match protocol_of(what):
        case "file":
            return OSError(errno.EIO, "Input/output error")
        case "s3":  # s3fs turns what it knows into the errors of an operating system
            error = OSError(errno.EBUSY, str(refused))
            error.__cause__ = refused
            return error
    return refused
