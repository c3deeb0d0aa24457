"""The specification of a run, as `run.json` keeps it: every driver that joins a run must make what it says."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

from diffseg.config import LABELS_VERSION, ResolvedConfig, fingerprint, labels_version_of
from pipeline import documents, flags
from pipeline.records import LATER, READER, READERS

WINDOW = 1024  # samples a commit: a lost worker repeats at most two windows, a million images make about 1,000 objects
MOST = 1 << 24  # samples of a window
NOT_IN_JSON = {"newer", "labels_version"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The specification of a run: written once as run.json, compared by every driver that joins."""

    fingerprint: str
    model: str
    revision: str | None
    weights_sha256: str
    segment: ResolvedConfig
    window: int = WINDOW
    image_key: str | None = None
    also: tuple[str, ...] = ()
    keep: str | None = None  # see `config.RunConfig`
    schema: int = 1
    reader: int = READER  # see `records.READER`; 1 where run.json has none
    licence: str | None = None  # of the model: recorded, not compared; None in runs begun before it was
    made_with: Mapping[str, str] = field(default_factory=dict)  # recorded, not compared
    newer: Mapping[str, Any] = field(default_factory=dict)  # fields of another version: kept, compared
    labels_version: int | None = None  # of its labels; None where the fingerprint does not follow from the other fields

    @classmethod
    def of(cls, segment: ResolvedConfig, weights_sha256: str, **fields: Any) -> "Run":
        """A run of this version. fields: the others."""
        return cls(
            fingerprint=fingerprint(segment, weights_sha256),
            weights_sha256=weights_sha256,
            segment=segment,
            made_with={"diffseg": version("diffseg")},
            labels_version=LABELS_VERSION[segment.mode],
            **fields,
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Run":
        """The run of a run.json. Raises ValueError where it is damaged, or configured as only other versions know."""
        document = documents.from_json(dict[str, Any], data)
        known = {f.name for f in fields(cls)} - NOT_IN_JSON
        values = {name: value for name, value in document.items() if name in known}
        if (reader := values.setdefault("reader", 1)) not in READERS:
            raise ValueError(f"its samples are told by rules {reader}, this version knows {READERS}: use a later one")
        recorded: Any = values.get("segment")
        if isinstance(recorded, dict):
            possible = {f.name for f in fields(ResolvedConfig)}
            if unknown := [name for name in recorded if name not in possible]:
                raise ValueError(f"segment has {', '.join(unknown)}, which this version of diffseg does not know")
            values["segment"] = {**ResolvedConfig.as_before(), **recorded}
        run = documents.validated(cls, values | {"newer": {k: v for k, v in document.items() if k not in known}})
        # of the recorded numbers: 0 and 0.0 are equal, but have other fingerprints
        return replace(run, labels_version=labels_version_of(run.fingerprint, recorded, run.weights_sha256))

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}")
        if self.window > MOST:
            raise ValueError(f"window must be at most {MOST}, got {self.window}")

    def to_json(self) -> bytes:
        """The bytes of run.json, readable by people too."""
        document = asdict(self) | {"segment": self.segment.to_dict()}
        newer, _ = document.pop("newer"), document.pop("labels_version")
        for name in ("licence", "keep"):
            if document[name] is None:
                del document[name]
        return json.dumps(document | newer, indent=2).encode()

    @property
    def later_columns(self) -> tuple[str, ...]:
        """The columns of `records.LATER` that its windows may have."""
        own = {"vectors": self.segment.vectors, "ridges": self.segment.ridges, "words": bool(self.segment.words)}
        own["kept"] = self.keep is not None
        return tuple(name for name in LATER if own.get(name, self.segment.tree))

    @property
    def notice(self) -> dict[str, str]:
        """What an export says of the labels' origin: the model's own name, without its place, and its licence."""
        name = PurePosixPath(self.model).name
        return {} if self.licence is None else {"model": name, "model_licence": self.licence}

    def refusal(self, other: "Run", *more: str) -> str | None:
        """Why the other run cannot share this run's folder, and which flags to repeat; None where it can.

        more: further reasons.
        """
        own, others = _comparable(self), _comparable(other)
        if own["weights_sha256"] != others["weights_sha256"] and self.model != other.model:
            own["model"], others["model"] = self.model, other.model  # a name tells a person more than a digest
            del own["weights_sha256"], others["weights_sha256"]
        if others["tree"] and not own["tree"]:  # then no flag of a tree is to be repeated
            others |= {name: own[name] for name in ("leaves", "cut", "crop_layers")}
        if own["tree"] and not others["tree"]:  # thresholds would ask for none
            own["thresholds"] = others["thresholds"]
        return flags.refusal("run", own, others, flags.LABEL, *more) if own != others or more else None


def _comparable(run: Run) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run.to_json())
    for name in ("made_with", "licence", "fingerprint", "model", "revision", "segment"):
        document.pop(name, None)
    document.setdefault("keep", None)
    segment: dict[str, Any] = json.loads(json.dumps(asdict(run.segment)))
    return {**document, **segment}
