"""Truth of a data set: per sample its key, its label maps, and its image where that lies beside them.

Input: WebDataset shards, or a folder. Files are found and grouped here; the protocol defines the meaning of their
values and the file names of published data sets.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image

from diffseg.types import IGNORE, Integer
from pipeline.derived.corrections import NAME, Corrections, Row, read_corrections
from pipeline.errors import ConfigError, ShardError
from pipeline.evaluation.protocols import Protocol, published
from pipeline.inputs import kinds, shards
from pipeline.inputs.reader import read_shard
from pipeline.records import RawSample, Shard
from pipeline.run.ledger import Ledger
from pipeline.storage import filesystem
from pipeline.storage.object_store import Store
from pipeline.storage.url import redact
from pipeline.table.label_map import decode_label_map, encode_label_map

T = TypeVar("T")
PHOTO = "jpg"  # the extension of a published data set's photos in its samples, whatever it is on storage


@dataclass(frozen=True, slots=True)
class TruthSample:
    """One image's truth, still encoded.

    key: as the data set has it. label_maps: one an annotator; empty where the sample has none.
    image: None where it does not lie beside the label maps. objects: a label map of instances, if asked for.
    """

    key: str
    label_maps: tuple[bytes, ...]
    image: bytes | None = None
    objects: bytes | None = None


@dataclass(frozen=True, slots=True)
class Truth:
    """A data set. samples: keys, and what reads the sample of each. listed: the keys to measure, None for all."""

    samples: Callable[[], Iterator[tuple[str, Callable[[], TruthSample]]]]
    listed: frozenset[str] | None = None

    def __iter__(self) -> Iterator[TruthSample]:
        """The samples to measure; listed keys that are missing come last, without label maps."""
        missing = set(self.listed or ())
        for key, sample in self.samples():
            if self.listed is None or key in self.listed:
                missing.discard(key)
                yield sample()
        for key in sorted(missing):
            yield TruthSample(key, ())


def open_truth(source: str, protocol: Protocol, *, member: str | None = None, listed: str | None = None) -> Truth:
    """Open a data set; nothing but names is read yet.

    source: shards (tars, globs, braces, a text file of them) or a folder. member: the extension that holds the label
    map, where a sample has several PNGs and one counts. listed: a text file with the keys to measure, one a line.
    Raises ConfigError where nothing is found, and while reading where a shard is damaged.
    """
    keys = None if listed is None else frozenset(read_list(listed, "keys"))
    if not _names_shards(source):
        return _open_folder(Store(source), protocol, member, keys)
    pinned = shards.pin([source])
    sample = partial(_sample, member=member, read=bytes, objects=protocol.objects)
    return Truth(
        lambda: (
            (key := protocol.key_of(raw.key), partial(sample, key, raw.members))
            for one in pinned
            for raw in _read_whole(one)
        ),
        keys,
    )


def corrected_truth(url: str, named: bool = False) -> tuple[Truth, list[str]]:
    """What people corrected of a run: regions; or named: values of categories, whose names are returned too.

    Void is 255, or 65535 beside as many segments. Raises ConfigError where nobody corrected anything.
    """
    people = read_corrections(Ledger.open(url), NAME) or Corrections()

    def sample(row: Row) -> TruthSample:
        of = [people.named.index(each["category"]) if each["category"] else IGNORE for each in row["segments"]]
        values = encode_label_map(np.array([*of, IGNORE])[decode_label_map(row["label_map"])])
        return TruthSample(row["key"], (values if named else row["label_map"],))

    return Truth(lambda: ((row["key"], partial(sample, row)) for row in people.images.values())), list(people.named)


def _read_whole(shard: Shard) -> Iterator[RawSample]:
    """Read all samples of a shard; damage is an error: a figure over a part of the truth would be another figure."""
    try:
        yield from read_shard(shard)
    except ShardError as error:
        raise ConfigError(f"{shard.url}: the truth is not whole: {error}") from error


def decode_truth(data: bytes, protocol: Protocol) -> Integer[np.ndarray, "H W"]:
    """A true label map as classes or regions, IGNORE for values that the protocol ignores.

    Raises ValueError for bytes that are no image of one channel.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP", "GIF")) as image:
            if len(image.getbands()) != 1 or image.mode == "F":
                raise ValueError(f"a label map has one channel of whole numbers, this one is {image.mode}")
            return protocol.truth_of(np.asarray(image).astype(np.int64))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"an unreadable label map: {error}") from error


def _names_shards(source: str) -> bool:
    name = redact(source)
    if name.lower().endswith((*kinds.SHARD_SUFFIXES, *kinds.LIST_SUFFIXES)):
        return True
    return any(c in name for c in "*{[") and not shards.exists(source)


def _sample(
    key: str, members: Mapping[str, T], member: str | None, read: Callable[[T], bytes], objects: str | None = None
) -> TruthSample:
    """The image is the likeliest photo; every other PNG is a label map, and so is a lone one."""
    known = sorted(kinds.OPENED, key=lambda extension: not kinds.is_photo(extension))
    photo = next((extension for extension in known if extension in members), None)
    pngs = [extension for extension in members if extension.endswith("png") and extension not in (photo, objects)]
    if photo == "png" and not pngs:
        photo, pngs = None, ["png"]
    chosen = sorted((extension for extension in pngs if member in (None, extension)), key=_natural)
    maps = tuple(read(members[extension]) for extension in chosen)
    image, instances = (read(members[name]) if name in members else None for name in (photo or "", objects or ""))
    return TruthSample(key, maps, image, instances)


def _natural(name: str) -> list[tuple[str, int]]:
    """seg2 before seg10."""
    return [(text, int(digits or -1)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _open_folder(store: Store, protocol: Protocol, member: str | None, keys: frozenset[str] | None) -> Truth:
    names = [name for name, _ in store.list("") if not kinds.is_system(name)]
    files = _group(names) if protocol.label_file is None else files_by_key(names, protocol)
    if not files:
        raise ConfigError(f"{store}: {_what_is_wrong(names, protocol)}")
    if keys is None and protocol.listed:
        own = next((name for name in names if PurePosixPath(name).name == protocol.listed), None)
        keys = frozenset(_lines_in(store.get(own) if own else published(protocol.listed)))
    sample = partial(_sample, member=member, read=store.get, objects=protocol.objects)
    return Truth(lambda: ((key, partial(sample, key, members)) for key, members in files.items()), keys)


def _group(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Files by key and extension, by WebDataset's rule applied to the last part of their paths.

    So `images/7.jpg` and `labels/7.png` are one sample. Raises ConfigError where two files have one key and extension.
    """
    found: dict[str, dict[str, str]] = {}
    for name in names:
        key, _, extension = PurePosixPath(name).name.partition(".")
        members = found.setdefault(key, {})
        if extension.lower() in members:
            raise ConfigError(
                f"{members[extension.lower()]} and {name} are both '{key}.{extension}': name label maps KEY.seg.png"
            )
        members[extension.lower()] = name
    return {key: members for key, members in found.items() if any(e.endswith("png") for e in members)}


def files_by_key(names: Iterable[str], protocol: Protocol) -> dict[str, dict[str, str]]:
    """Files that have a label map, by key and extension, in a published data set's own layout; the photo is PHOTO."""
    found: dict[str, dict[str, str]] = {}
    for extension, pattern in (("seg.png", protocol.label_file), (PHOTO, protocol.image_file)):
        for name in names:
            if pattern and (match := re.search(pattern, name)):
                found.setdefault(match.group(1), {})[extension] = name
    return {key: members for key, members in found.items() if "seg.png" in members}


def _what_is_wrong(names: list[str], protocol: Protocol) -> str:
    if not names:
        return "no such folder, or nothing in it"
    if any(name.endswith(kinds.SHARD_SUFFIXES) for name in names):
        return "a folder of shards; name them, for example FOLDER/*.tar"
    wanted = protocol.label_file or "KEY.png or KEY.seg0.png"
    return f"no label maps of {protocol.name} among {len(names)} files such as {names[0]}; wanted are {wanted}"


def read_list(url: str, what: str) -> list[str]:
    """The lines of a UTF-8 text, without empty ones. what: for errors. Raises ConfigError where there are none."""
    try:
        entry = filesystem.stat(url)
        with filesystem.open_ranged(entry.url, entry.size) as stream:
            lines = _lines_in(stream.read())
    except (FileNotFoundError, IsADirectoryError) as error:
        raise ConfigError(f"{redact(url)}: no such list of {what}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{redact(url)}: a list of {what} is text in UTF-8: {error}") from error
    if not lines:
        raise ConfigError(f"{redact(url)}: an empty list of {what}")
    return lines


def _lines_in(text: bytes) -> list[str]:
    return [line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip()]
