"""What a run makes, as `run.json` keeps it: everybody who joins must be making the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from diffseg.config import SegmentConfig
from pipeline.records import READER, READERS

WINDOW = 1024  # samples a commit: a lost worker repeats at most two windows, a million images make about 1,000 objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run makes: written once as run.json, compared by everybody who joins."""

    fingerprint: str
    model: str
    revision: str | None
    weights_sha256: str
    segment: Mapping[str, Any]  # the resolved SegmentConfig
    window: int = WINDOW
    image_key: str | None = None
    also: tuple[str, ...] = ()
    schema: int = 1
    reader: int = READER  # see `records.READER`; 1 where run.json does not say
    made_with: Mapping[str, str] = field(default_factory=dict)  # recorded, not compared

    @classmethod
    def from_json(cls, data: bytes) -> "Run":
        """Raises ValueError for what is no run.json, or that of a later version."""
        said = json.loads(data)
        if not isinstance(said, dict):
            raise ValueError("no run.json of ours: not an object")
        known = {f.name for f in fields(cls)}
        values: Any = {name: value for name, value in said.items() if name in known}
        if (reader := values.setdefault("reader", 1)) not in READERS:
            raise ValueError(f"its samples are told by rules {reader}, this version knows {READERS}: use a later one")
        try:
            return cls(**{**values, "also": tuple(values.get("also", ()))})
        except TypeError as error:
            raise ValueError(f"no run.json of ours: {error}") from error

    @property
    def config(self) -> SegmentConfig:
        """The configuration that decides the labels."""
        return SegmentConfig(**{**self.segment, "thresholds": tuple(self.segment["thresholds"])})

    def to_json(self) -> bytes:
        """Readable by people too."""
        return json.dumps(asdict(self), indent=2).encode()

    def differences(self, other: "Run") -> list[str]:
        """What keeps two runs from sharing a folder, one line each; empty where nothing does."""
        theirs, mine = _comparable(self), _comparable(other)
        return [
            f"{k}: {theirs.get(k)} there, {mine.get(k)} here"
            for k in sorted(mine | theirs)
            if mine.get(k) != theirs.get(k)
        ]


def _comparable(run: Run) -> dict[str, Any]:
    said = json.loads(run.to_json())
    segment = said.pop("segment")
    for name in ("made_with", "fingerprint", "model", "revision"):
        said.pop(name)
    return {**said, **segment}
