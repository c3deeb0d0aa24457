"""Export of a run: parts of whole windows, each written on its own, on this machine or on others.

export.json           what is exported from which run, create-only: another export is refused here; the model's licence
_export/<part>.json   the record of a complete part, written after everything it holds
_SUCCESS              written last, when all parts are complete
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import count
from typing import Any

from pipeline import documents, flags
from pipeline.concurrency import ParallelMap
from pipeline.datasets.samples import COMPONENTS, SEGMENTS, Samples, check_instances
from pipeline.datasets.selection import Part, RowCounts, Selection
from pipeline.datasets.source_images import SourceImages
from pipeline.errors import ConfigError
from pipeline.exports import annotations, archives, label_studio
from pipeline.exports.categories import categories_of
from pipeline.exports.parts import Add, PartWriter, Work, plan, writing
from pipeline.run.layout import WindowObject
from pipeline.run.ledger import Ledger
from pipeline.storage.object_store import Store

EXPORT, PARTS, SUCCESS = "export.json", "_export", "_SUCCESS"
LATER = (  # not recorded by 0.1.0
    *("withdrawn", "cut", "segments", "calibration", "categories", "corrections", "among"),
    *("things", "stuff", "instances"),
)
ANNOTATIONS = 10**10  # ids reserved for each part: more than 100,000 images need, and 900,000 parts fit in a double


@dataclass(frozen=True, slots=True)
class Format:
    """A format of exports.

    write: opens one side of one part and writes its samples. part: images of a part at most, but never less than a
    window. images: whether photos belong to it always; else they are a choice. whole: with everything of a sample.
    instances: their kind by default; None: no place for them.
    finish: given the parts and sides that there are, what is written after the last of them.
    """

    write: Callable[[PartWriter], AbstractContextManager[Add]]
    part: int
    images: bool = False
    whole: bool = False
    instances: str | None = None
    finish: Callable[[Store, int, list[str]], None] | None = None


FORMATS = {
    "coco-segments": Format(annotations.segments, part=100_000, instances=COMPONENTS),
    "coco-panoptic": Format(annotations.panoptic, part=100_000, instances=SEGMENTS),
    "png": Format(annotations.pngs, part=10_000, finish=annotations.join_lists),
    "webdataset": Format(archives.webdataset, part=4096, images=True, whole=True),
    "huggingface": Format(archives.parquet, part=4096, images=True),
    "sa1b": Format(archives.sa1b, part=4096, images=True),
    "cvat": Format(annotations.masks, part=10_000),
    "label-studio": Format(label_studio.tasks, part=10_000),
}


@dataclass(slots=True)
class State:
    """Progress of an export: of one part, or of all parts so far."""

    parts: int = 0
    sides: Counter[str] = field(default_factory=Counter)  # images
    tally: RowCounts = field(default_factory=RowCounts)

    def add(self, other: "State") -> None:
        """Add the counts of another part."""
        self.parts += other.parts
        self.tally.add(other.tally)
        self.sides.update(dict(sorted(other.sides.items())))


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export. missing: windows that the run lacks, one line each."""

    output: str
    state: State
    missing: tuple[str, ...]
    idle: bool  # everything existed already


def export(
    ledger: Ledger,
    url: str,
    kind: str,
    selection: Selection,
    *,
    images: bool | None = None,
    members: bool | None = None,
    instances: str | None = None,
    things: str | None = None,
    stuff: str | None = None,
    parallel_map: ParallelMap = map,
    tick: Callable[[State], None] = lambda _: None,
) -> Exported:
    """Write what is committed of a run in another format; the same call resumes.

    kind: of FORMATS. images: whether photos lie beside the labels; None: yes.
    members: whether a sample's other members are taken along, where the format has a place for them; None: yes.
    instances: what of a segment is one object; None: the format's default. things, stuff: see `categories_of`.
    parallel_map: applied to parts, which may be written on other machines. tick: told after every part.
    Raises ConfigError for an unknown format and where something else lies at `url`, StorageError, ShardChanged.
    """
    if kind not in FORMATS:
        raise ConfigError(f"--format {kind!r}: possible are {', '.join(FORMATS)}")
    selection.check(ledger)
    format_ = FORMATS[kind]
    if format_.images and images is False:
        raise ConfigError(f"--no-images: photos are part of {kind}")
    if not format_.whole and members is not None:
        raise ConfigError(f"--members: {kind} has no place for them, only webdataset has")
    if instances is not None and format_.instances is None:
        raise ConfigError(f"--instances: {kind} has no place for them, only coco-segments and coco-panoptic have")
    check_instances(ledger, kept := instances or format_.instances or SEGMENTS)
    categories = categories_of(ledger, things, stuff)
    images, members = images is not False, format_.whole and members is not False
    if not (windows := selection.windows(ledger)):
        raise ConfigError(f"{ledger}: nothing is committed yet, so there is nothing to export")
    store = Store(url)
    asked = {"things": things, "stuff": stuff, "instances": None if kept == format_.instances else instances}
    _begin(store, _description(ledger, windows, kind, selection, images, members) | asked, ledger.run.notice)
    if store.exists(SUCCESS):
        return Exported(str(store), _state(store, SUCCESS), _missing(ledger), idle=True)
    parts, names = plan(ledger, windows, selection, max(1, format_.part // ledger.run.window))
    work = Work(kind, len(parts), selection, images, members, names, categories, kept)
    state = State()
    for one in _written(ledger, store, work, parts, parallel_map):
        state.add(one)
        tick(state)
    if format_.finish:
        format_.finish(store, state.parts, sorted(state.sides))
    store.put_new(SUCCESS, documents.to_json(state, indent=2))
    return Exported(str(store), state, _missing(ledger), idle=False)


def _description(
    ledger: Ledger, windows: Sequence[WindowObject], kind: str, selection: Selection, images: bool, members: bool
) -> dict[str, Any]:
    listed, among = (
        hashlib.blake2b("\n".join(each).encode(), digest_size=8).hexdigest()
        for each in ((window.name for window in windows), map(str, sorted(selection.among or ())))
    )
    return {
        "format": kind,
        "run": ledger.run.fingerprint,
        "windows": f"{len(windows)} ({listed})",
        "images": images,
        "members": members,
        "cut": ledger.cut.height if ledger.cut else None,
        "segments": ledger.cut.segments if ledger.cut else None,
        "calibration": ledger.calibration,
        "categories": ledger.categories,
        "withdrawn": len(ledger.withdrawn) or None,
        "corrections": ledger.corrections,
        **asdict(selection),
        "among": selection.among and f"{len(selection.among)} ({among})",
    }


def _begin(store: Store, description: dict[str, Any], notice: dict[str, str]) -> None:
    """Record what is exported here, or find an equal record. Raises ConfigError where something else is stored.

    notice: recorded, not compared.
    """
    if not store.exists(EXPORT) and next(store.list(""), None):
        raise ConfigError(f"{store}: there is something here that is no export: use another --output")
    written = {name: value for name, value in description.items() if value is not None or name not in LATER}
    if store.put_new(EXPORT, json.dumps(written | notice, indent=2).encode()):
        return
    try:
        stored = store.document(dict[str, Any], EXPORT)
    except ValueError as error:
        raise ConfigError(f"{store}/{EXPORT}: no export of ours: {error}") from error
    existing = {name: stored.get(name) for name in description}
    if existing["format"] != description["format"]:
        existing["members"] = description["members"]  # only one format has this option
    if existing != description:
        raise ConfigError(f"{store} {flags.refusal('export', existing, description, flags.EXPORT)}")


def _written(
    ledger: Ledger, store: Store, work: Work, parts: Sequence[Part], parallel_map: ParallelMap
) -> Iterator[State]:
    """Progress of every part, in order; parts that exist already are not written again."""
    existing = {name for name, _ in store.list(f"{PARTS}/")}
    left = [part for part in parts if _record(part) not in existing]
    written = parallel_map(partial(_write_part, ledger, store.url, work), left)
    for part in parts:
        yield _state(store, _record(part)) if _record(part) in existing else next(written)


def _state(store: Store, name: str) -> State:
    try:
        return store.document(State, name)
    except ValueError as error:
        raise ConfigError(f"{store}/{name}: no record of ours: {error}; remove it and export again") from error


def _record(part: Part) -> str:
    return f"{PARTS}/{part.number:06}.json"


def _write_part(ledger: Ledger, output: str, work: Work, part: Part) -> State:
    """Write everything a part holds, and then its record; the result depends on the run and the part alone."""
    store = Store(output)
    if not store.exists(EXPORT):
        raise ConfigError(f"{store}: a machine of the cluster does not see the export that was begun there")
    photos = SourceImages(ledger, whole=work.members) if work.images else None
    samples = Samples(ledger, work.selection, work.names, photos, instances=work.instances)
    ids = count(part.number * ANNOTATIONS + 1)
    sides: dict[str, Add] = {}
    state = State(parts=1)
    with writing(store) as put, ExitStack() as opened:
        for sample in samples.of(part, state.tally):
            if sample.side not in sides:
                notice, side = ledger.run.notice, sample.side
                writer = PartWriter(
                    work=work, side=side, number=part.number, ids=ids, notice=notice, store=store, put=put
                )
                sides[sample.side] = opened.enter_context(FORMATS[work.kind].write(writer))
            sides[sample.side](sample)
            state.sides[sample.side] += 1
    store.put_new(_record(part), documents.to_json(state, indent=2))
    return state


def _missing(ledger: Ledger) -> tuple[str, ...]:
    ends = (
        (task, "its end" if task.last_window is None else f"window {task.last_window}") for task in ledger.missing()
    )
    return tuple(f"{task.shard.url}: window {task.first_window} to {last}" for task, last in ends)
