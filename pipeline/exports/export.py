"""A run becomes an export: parts of whole windows, one after the other, each committed before the next.

export.json           what is exported from which run, create-only: another export is refused here
_export/<part>.json   a part is there, and how far the export is; written after everything the part holds
_SUCCESS              the last word
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count
from typing import Any

from pipeline.errors import ConfigError
from pipeline.exports import archives, coco, huggingface, png
from pipeline.exports.names import Names
from pipeline.exports.place import Place, writing
from pipeline.exports.samples import Labelled, Samples, Selection, Tally
from pipeline.ledger import Ledger
from pipeline.store import Store
from pipeline.windows import WindowObject

EXPORT, PARTS, SUCCESS = "export.json", "_export", "_SUCCESS"


@dataclass(frozen=True, slots=True)
class Format:
    """How samples are written.

    write: opens one side of one part and takes its samples. part: images of a part at most, but never less than a
    window. images: whether photos belong to it always; else they are a choice. whole: with everything of a sample.
    finish: given the parts and sides that there are, what is written after the last of them.
    """

    write: Callable[[Place], AbstractContextManager[Callable[[Labelled], None]]]
    part: int
    images: bool = False
    whole: bool = False
    finish: Callable[[Store, int, list[str]], None] | None = None


FORMATS = {
    "coco-segments": Format(coco.segments, part=100_000),
    "coco-panoptic": Format(coco.panoptic, part=100_000),
    "png": Format(png.pngs, part=10_000, finish=png.join_lists),
    "webdataset": Format(archives.webdataset, part=4096, images=True, whole=True),
    "huggingface": Format(huggingface.parquet, part=4096, images=True),
    "sa1b": Format(archives.sa1b, part=4096, images=True),
}


@dataclass(slots=True)
class State:
    """How far an export is, as its last part says."""

    parts: int = 0
    annotations: int = 0
    sides: dict[str, int] = field(default_factory=dict)  # images
    categories: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def to_json(self) -> bytes:
        """As a part's record."""
        return json.dumps(asdict(self), indent=2).encode()

    @classmethod
    def from_json(cls, data: bytes) -> "State":
        """The inverse."""
        said = json.loads(data)
        return cls(**{**said, "tally": Tally(**said["tally"])})


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to. missing: what the run itself lacks, one line each."""

    output: str
    state: State
    missing: tuple[str, ...]
    idle: bool  # everything was there already


def export(
    ledger: Ledger,
    url: str,
    kind: str,
    selection: Selection,
    *,
    images: bool | None = None,
    members: bool | None = None,
    tick: Callable[[State], None] = lambda _: None,
) -> Exported:
    """Write what is committed of a run in another format; the same call resumes.

    kind: of FORMATS. images: whether photos lie beside the labels; None: yes.
    members: whether a sample's other members are taken along, where the format has a place for them; None: yes.
    tick: told after every part.
    Raises ConfigError for an unknown format and where something else lies at `url`, StorageError, ShardChanged.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind!r}: possible are {', '.join(FORMATS)}")
    format_ = FORMATS[kind]
    if format_.images and images is False:
        raise ConfigError(f"--no-images: photos are part of {kind}")
    if not format_.whole and members is not None:
        raise ConfigError(f"--members: {kind} has no place for them, only webdataset has")
    images, members = images is not False, format_.whole and members is not False
    windows = list(ledger.windows())
    if not windows:
        raise ConfigError(f"{ledger}: nothing is committed yet, so there is nothing to export")
    store = Store(url)
    _begin(store, _description(ledger, windows, kind, selection, images, members))
    idle = store.exists(SUCCESS)
    state = _resumed(store)
    if not idle:
        samples = Samples(ledger, selection, Names(ledger, windows), photos=images, whole=members)
        for part in _parts(windows, max(1, format_.part // ledger.run.window))[state.parts :]:
            if selection.limit is not None and state.tally.images >= selection.limit:
                break
            _write_part(store, format_, samples, part, state)
            tick(state)
        if format_.finish:
            format_.finish(store, state.parts, sorted(state.sides))
        store.put_new(SUCCESS, state.to_json())
    return Exported(str(store), state, _missing(ledger), idle)


def _description(
    ledger: Ledger, windows: Sequence[WindowObject], kind: str, selection: Selection, images: bool, members: bool
) -> dict[str, Any]:
    listed = hashlib.blake2b("\n".join(window.name for window in windows).encode(), digest_size=8).hexdigest()
    return {
        "format": kind,
        "run": ledger.run.fingerprint,
        "windows": f"{len(windows)} ({listed})",
        "images": images,
        "members": members,
        **asdict(selection),
    }


def _begin(store: Store, mine: dict[str, Any]) -> None:
    """Say what is exported here, or find the same said. Raises ConfigError where something else is there."""
    if not store.exists(EXPORT) and next(store.list(""), None):
        raise ConfigError(f"{store}: there is something here that is no export: use another --output")
    if store.put_new(EXPORT, json.dumps(mine, indent=2).encode()):
        return
    try:
        theirs = json.loads(store.get(EXPORT))
    except ValueError as error:
        raise ConfigError(f"{store}/{EXPORT}: no export of ours: {error}") from error
    differing = [f"{k}: {theirs.get(k)} there, {v} here" for k, v in mine.items() if theirs.get(k) != v]
    if differing:
        raise ConfigError(f"{store} holds another export ({'; '.join(differing)}): use another --output")


def _resumed(store: Store) -> State:
    last = None
    for name, _ in store.list(f"{PARTS}/"):
        last = name if name.endswith(".json") else last
    return State.from_json(store.get(last)) if last else State()


def _parts(windows: Sequence[WindowObject], size: int) -> list[Sequence[WindowObject]]:
    return [windows[first : first + size] for first in range(0, len(windows), size)]


def _write_part(store: Store, format_: Format, samples: Samples, windows: Sequence[WindowObject], state: State) -> None:
    ids = count(state.annotations + 1)
    sides: dict[str, Callable[[Labelled], None]] = {}
    with writing(store) as puts, ExitStack() as opened:
        for sample in samples.of(windows, state.tally):
            if sample.side not in sides:
                place = Place(
                    side=sample.side,
                    number=state.parts,
                    images=samples.photos,
                    members=samples.whole,
                    min_area=samples.selection.min_area,
                    ids=ids,
                    categories=state.categories,
                    puts=puts,
                )
                sides[sample.side] = opened.enter_context(format_.write(place))
            sides[sample.side](sample)
            state.sides[sample.side] = state.sides.get(sample.side, 0) + 1
    state.annotations = next(ids) - 1
    name = f"{PARTS}/{state.parts:06}.json"
    state.parts += 1
    store.put_new(name, state.to_json())


def _missing(ledger: Ledger) -> tuple[str, ...]:
    def lines() -> Iterator[str]:
        for task in ledger.missing():
            last = "its end" if task.last_window is None else f"window {task.last_window}"
            yield f"{task.shard.url}: window {task.first_window} to {last}"

    return tuple(lines())
