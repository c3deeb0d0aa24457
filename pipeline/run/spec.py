"""What a run makes, as `run.json` keeps it: everybody who joins must be making the same."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from typing import Any

from diffseg.config import FIRST_FIELDS, SegmentConfig, fingerprint, labels_version_of
from pipeline import flags
from pipeline.documents import validated
from pipeline.records import READER, READERS

WINDOW = 1024  # samples a commit: a lost worker repeats at most two windows, a million images make about 1,000 objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a run makes: written once as run.json, compared by everybody who joins."""

    fingerprint: str
    model: str
    revision: str | None
    weights_sha256: str
    segment: Mapping[str, Any]  # the resolved SegmentConfig, as `to_dict` gives it
    window: int = WINDOW
    image_key: str | None = None
    also: tuple[str, ...] = ()
    schema: int = 1
    reader: int = READER  # see `records.READER`; 1 where run.json does not say
    made_with: Mapping[str, str] = field(default_factory=dict)  # recorded, not compared
    newer: Mapping[str, Any] = field(default_factory=dict)  # what another version wrote beside these: kept, compared

    @classmethod
    def of(cls, config: SegmentConfig, weights_sha256: str, **more: Any) -> "Run":
        """A run of this version. config: resolved. more: the other fields."""
        return cls(
            fingerprint=fingerprint(config, weights_sha256),
            weights_sha256=weights_sha256,
            segment=json.loads(json.dumps(config.to_dict())),
            made_with={"diffseg": version("diffseg")},
            **more,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Run":
        """Raises ValueError for what is no run.json, or one whose configuration this version does not know."""
        said = json.loads(data)
        if not isinstance(said, dict):
            raise ValueError("no run.json of ours: not an object")
        known = {f.name for f in fields(cls)} - {"newer"}
        values = {name: value for name, value in said.items() if name in known}
        if (reader := values.setdefault("reader", 1)) not in READERS:
            raise ValueError(f"its samples are told by rules {reader}, this version knows {READERS}: use a later one")
        run = validated(cls, values | {"newer": {k: v for k, v in said.items() if k not in known}})
        possible = {f.name for f in fields(SegmentConfig)}
        if unknown := [name for name in run.segment if name not in possible]:
            raise ValueError(f"segment has {', '.join(unknown)}, which this version of diffseg does not know")
        _ = run.config
        return run

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")

    @property
    def config(self) -> SegmentConfig:
        """The configuration that decides the labels. Raises ValueError where its values are of no use."""
        return validated(SegmentConfig, {**SegmentConfig.as_before(), **self.segment})

    @property
    def is_whole(self) -> bool:
        """Whether all that 0.1.0 knew of a configuration is there, as in every run that a command began."""
        return self.segment.keys() >= FIRST_FIELDS

    @property
    def labels_version(self) -> int | None:
        """The LABELS_VERSION of its labels; None where the fingerprint does not follow from what stands beside it."""
        return labels_version_of(self.fingerprint, self.segment, self.weights_sha256)

    def to_json(self) -> bytes:
        """Readable by people too."""
        said = asdict(self)
        newer = said.pop("newer")
        return json.dumps(said | newer, indent=2).encode()

    def refusal(self, other: "Run", *more: str) -> str | None:
        """Why the other cannot share a folder with this run, and which flags to repeat; None where it can.

        more: what else keeps them apart.
        """
        theirs, mine = _comparable(self), _comparable(other)
        if theirs["weights_sha256"] != mine["weights_sha256"] and self.model != other.model:
            theirs["model"], mine["model"] = self.model, other.model  # more to a person than their digests
            del theirs["weights_sha256"], mine["weights_sha256"]
        return flags.refusal("run", theirs, mine, flags.LABEL, *more) if theirs != mine or more else None


def _comparable(run: Run) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(run.to_json())
    for name in ("made_with", "fingerprint", "model", "revision", "segment"):
        said.pop(name)
    config: dict[str, Any] = json.loads(json.dumps(asdict(run.config)))
    return {**said, **config}
