"""WebDataset tars read: members become samples by WebDataset's naming rules.

Members come from `strict`: webdataset's own reader stops without a word at the first damage.
"""

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from pipeline.errors import CorruptShard
from pipeline.inputs import kinds
from pipeline.inputs.decode import MAX_BYTES
from pipeline.inputs.tar.strict import is_compressed, members, open_strict, prove_end
from pipeline.records import READER, RawSample

MAX_MEMBERS = 10_000  # of a sample
MAX_SAMPLE = 2 * MAX_BYTES  # of the members of a sample that are read
_NAME = re.compile(r"((?:.*/)?[^.]+)\.([^/]*)")  # key and extension: they part at the first dot of the last component


@dataclass(slots=True)
class _Group:
    """The members of one key, as they come."""

    key: str
    index: int
    reader: int
    members: dict[str, bytes] = field(default_factory=dict)
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)  # by extension
    end: int = 0
    bytes: int = 0  # of the members that are read
    excess: tuple[str, str] | None = None

    def holds(self, extension: str) -> bool:
        """Whether there is room for one more member's name; without it the sample is too large."""
        if len(self.members) >= MAX_MEMBERS:
            self.excess = "too_large", f"more than {MAX_MEMBERS:,} members, of which the first are kept"
        return len(self.members) < MAX_MEMBERS

    def holds_bytes(self, size: int) -> bool:
        """Whether there is room for one more member's bytes; without it the sample is too large."""
        self.bytes += size
        if self.bytes > MAX_SAMPLE:
            self.excess = "too_large", f"members of more than {MAX_SAMPLE:,} bytes, of which the first are kept"
        return self.bytes <= MAX_SAMPLE

    def sample(self, image_key: str | None) -> RawSample:
        image, problem = image_of(self.members, image_key, self.reader), self.excess
        if image is not None:
            problem = problem or self.problems.get(image)
        return RawSample(self.key, self.index, self.members, image, self.end, problem)


def read_samples(
    stream: IO[bytes],
    name: str,
    *,
    first: int = 0,
    image_key: str | None = None,
    whole: bool = True,
    reader: int = READER,
) -> Iterator[RawSample]:
    """Group the members of a tar into samples by WebDataset's rules, and prove at the end that nothing was left unread.

    name: tells a compressed tar by its extension. first: the samples before it come by their headers alone, without
    members' bytes. image_key: the extension that holds the image; None: see `image_of`. whole: with the bytes of all
    members, else only of those that may be the image. reader: the version of its rules. Two neighbours of one key
    that repeat an extension are two samples; a link is a sample without an image.
    Raises CorruptShard where the archive is damaged, after the last sample that has its image whole.
    Format: https://github.com/webdataset/webdataset (naming: the key is the path up to the first dot of its last part).
    """
    image_key = image_key.lower().lstrip(".") if image_key else None
    group: _Group | None = None
    reading: str | None = None  # the member whose bytes are being read
    passed = 0  # members that belong to no sample
    try:
        with open_strict(stream, name) as archive:
            for info in members(archive):
                name_parts = _NAME.fullmatch(info.name)
                if name_parts is None or (reader > 1 and kinds.is_system(info.name)):
                    passed += 1
                    continue
                prefix, extension = name_parts.groups()
                if prefix.startswith("__") and prefix.endswith("__"):
                    continue
                extension = extension.lower()
                if group is None or prefix != group.key or extension in group.members:
                    if group:
                        yield group.sample(image_key)
                    group = _Group(prefix, group.index + 1 if group else 0, reader)
                wanted = group.index >= first and (whole or _may_be_image(extension, image_key, reader))
                if group.holds(extension):
                    if problem := _problem_of(info):
                        group.problems[extension] = problem
                    elif wanted and group.holds_bytes(info.size):
                        reading = extension
                        group.members[extension] = _payload(archive, info)
                        reading = None
                    group.members.setdefault(extension, b"")
                group.end = stream.tell() if is_compressed(name) else archive.offset
            prove_end(archive)
            if passed and group is None:
                hidden = " and not hidden" if reader > 1 else ""
                raise CorruptShard(f"none of its {passed} members is named KEY.EXTENSION{hidden}", archive.offset)
    except CorruptShard:
        cut = reading is not None and _may_be_image(reading, image_key, reader)
        if group and not cut and image_of(group.members, image_key, reader):
            yield group.sample(image_key)
        raise
    if group:
        yield group.sample(image_key)


def image_of(members: Iterable[str], image_key: str | None = None, reader: int = READER) -> str | None:
    """The extension that holds the image: the named one, else the first of `kinds.OPENED` among the members.

    Without one, a single extension of several parts that ends in one of these (`7.photo.jpg`) is used. An image that
    may be a mask beside a photo that cannot be opened, or that has another name, is not used.
    """
    extensions = list(members)
    if image_key is not None:
        return image_key if image_key in extensions else None
    known = kinds.OPENED if reader > 1 else kinds.IMAGE_EXTENSIONS
    plain = [extension for extension in extensions if "." not in extension and kinds.is_opened(extension, reader)]
    longer = [extension for extension in extensions if "." in extension and kinds.is_opened(extension, reader)]
    if plain:
        chosen = min(plain, key=lambda extension: known.index(kinds.last(extension)))
    elif len(longer) == 1:
        [chosen] = longer
    else:
        return None
    return None if reader > 1 and _may_be_a_mask(chosen, extensions) else chosen


def _may_be_a_mask(image: str, members: Iterable[str]) -> bool:
    """Whether an image is named as one, or another member rather looks like the photo."""
    named = image.rpartition(".")[0]
    if named and kinds.shows_labels(named):
        return True
    if not named and kinds.is_photo(image):
        return False
    others = [other.rpartition(".")[0] for other in members if other != image and kinds.is_photo(other)]
    return not all(kinds.shows_labels(other) or kinds.is_smaller(other) for other in others)


def _may_be_image(extension: str, image_key: str | None, reader: int) -> bool:
    return extension == image_key if image_key is not None else kinds.is_opened(extension, reader)


def _problem_of(info: tarfile.TarInfo) -> tuple[str, str] | None:
    if not info.isreg():
        return "no_image", f"{info.name} is a link to {info.linkname}, without bytes of its own"
    if info.size > MAX_BYTES:
        return "too_large", f"{info.name} has {info.size} bytes, more than the {MAX_BYTES} that are read"
    return None


def _payload(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    data = file.read() if file else b""
    if len(data) != info.size:
        raise CorruptShard(f"{info.name}: {len(data)} of {info.size} bytes", info.offset_data)
    return data
