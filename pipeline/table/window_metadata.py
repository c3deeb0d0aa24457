"""The metadata of a window's file, and the digest of its rows. Knows nothing of Parquet."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffseg.types import Segment
from pipeline.records import LATER, LabelRecord

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowMetadata:
    """The metadata of a window's file. Two attempts of equal `identity` hold the same labels."""

    fingerprint: str
    shard: str  # id
    url: str
    size: int
    etag: str
    window: int
    first_index: int
    rows: int
    failed: Mapping[str, int]  # rows by status, other than ok
    attempt: str
    digest: str  # of the rows, see `digest_of`
    model: str
    revision: str | None
    made_with: Mapping[str, str]  # versions, device, batch size: recorded, not part of the identity
    schema: int = SCHEMA_VERSION

    @property
    def identity(self) -> tuple[Any, ...]:
        """Input, window and configuration: what the rows follow from."""
        return (self.shard, self.url, self.size, self.etag, self.window, self.fingerprint)


def digest_of(records: Sequence[LabelRecord]) -> str:
    """A hash of the rows' values in the columns that have any, whatever way Parquet stores them.

    blake2b; begins with "2:" where it covers columns of LATER too, so that none can be added or lost unseen.
    """
    digest = hashlib.blake2b(digest_size=16)
    absent = columns_without_value(records)
    for record in records:
        row = {name: value for name, value in fields_of(record).items() if name not in absent}
        row["quality"] = as_stored(record.quality)
        row["segments"] = [{**fields_of(segment), "score": as_stored(segment.score)} for segment in record.segments]
        digest.update(repr(row).encode())
    return digest.hexdigest() if len(absent) == len(LATER) else f"2:{digest.hexdigest()}"


def columns_without_value(records: Sequence[LabelRecord]) -> set[str]:
    """The columns of LATER that a window of these rows does not have."""
    return {name for name in LATER if all(getattr(record, name) is None for record in records)}


def fields_of(value: LabelRecord | Segment) -> dict[str, Any]:
    """The fields of a value by name; `asdict` copies each of them, which takes nine times as long."""
    return {name: getattr(value, name) for name in value.__slots__}


def as_stored(value: float | None) -> float | None:
    """A number as it is read back from its float32 column."""
    return None if value is None else struct.unpack("f", struct.pack("f", value))[0]
