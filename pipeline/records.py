"""The records that flow through a run: shards, samples, rows. Pixels and masks never leave their process."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffseg.types import Segment

READER = 2  # version of the rules of what is a sample and how it is decoded; a run keeps the one it began with
READERS = (1, READER)  # versions that are known; 1: of version 0.1.0
MAX_PIXELS = 178_956_970  # of an image, and so of its label map: Pillow's own bomb limit, 512 MiB of RGB
MAX_SIDE = 65_535  # JPEG's; a longer side is an attack or a mistake
OK = "ok"  # the status of a sample with labels; every other status is the reason why it has none
# columns that 0.1.0 did not have: only in windows with a value of theirs
LATER = ("leaf_map", "tree", "vectors", "ridges", "words", "kept")
CHANGED = "not the photo that was labelled"  # how a reason begins for which a reader leaves an image out
WITHDRAWN = "withdrawn"  # the status of a sample that no reader may show; its row has no key and nothing else
POISON = "poison"  # the status of a sample that killed every worker that had it alone


@dataclass(frozen=True, slots=True)
class Shard:
    """An input as it was pinned when the run began.

    url: canonical and absolute, without user info or query; recorded. source: the URL that is opened, which may hold a
    signed query; never recorded. files: of a folder, the list of its files (`file_list`), or the URL of that list.
    reader: one of READERS, that of its run.
    """

    id: str
    url: str
    size: int  # bytes
    etag: str  # the store's, or the modification time where it has none
    source: str = field(default="", repr=False, compare=False)
    files: str | bytes = field(default="", repr=False, compare=False)
    reader: int = field(default=READER, repr=False, compare=False)


def legible(text: str) -> str:
    """Text that UTF-8 can encode: bytes of a name that are no UTF-8, as in old archives, are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def digest_of_key(key: str) -> str:
    """What is kept of a key that was withdrawn, since the key itself may be what is to be forgotten."""
    return hashlib.blake2b(key.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class RawSample:
    """A sample as a shard holds it: members by lower-case extension, empty where they were skipped."""

    key: str
    index: int
    members: Mapping[str, bytes]
    image: str | None  # the extension that holds the image; None where there is none
    end: int  # bytes of the shard up to the end of this sample
    problem: tuple[str, str] | None = None  # status and reason, where the image is known to be unusable
    kept: Mapping[str, str] | None = None  # chosen fields of a member

    def is_other_than(self, sha256: str | None) -> bool:
        """Whether its encoded image is another one than a row was made from. sha256: of the row; None: not known."""
        data = self.members.get(self.image, b"") if self.image else b""
        return bool(data) and sha256 is not None and hashlib.sha256(data).hexdigest() != sha256


@dataclass(frozen=True, slots=True)
class Category:
    """A category of a run's segments. thing: whether it is of objects that can be counted; None: not known."""

    id: int  # from 1
    name: str
    thing: bool | None = None


@dataclass(frozen=True, slots=True)
class ImageSample:
    """A sample with its image decoded, uint8 [H, W, 3], upright; a large image at a reduced scale."""

    raw: RawSample
    image: np.ndarray
    size: tuple[int, int]  # width and height of the source, upright
    sha256: str  # of the encoded image


@dataclass(frozen=True, slots=True)
class SampleFailure:
    """A sample that cannot be labelled, and the reason."""

    raw: RawSample
    reason: str  # undecodable, too_large, no_image, model_nan, model_error, poison
    error: str
    size: tuple[int, int] | None = None  # width and height of the source, upright
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class LabelRecord:
    """A row: the result of one input sample."""

    key: str
    shard: str
    index: int
    status: str
    error: str | None = None
    width: int | None = None  # pixels of the source image, upright
    height: int | None = None
    label_map: bytes | None = None  # PNG
    segments: tuple[Segment, ...] = ()
    quality: float | None = None
    image_sha256: str | None = None
    leaf_map: bytes | None = None  # see `table.leaf_map`, of `tree` and `vectors` `table.trees`
    tree: bytes | None = None
    vectors: bytes | None = None
    ridges: bytes | None = None  # one a border of `diffseg.ridges`
    words: bytes | None = None  # `diffseg.types.WORD`, three a leaf or segment
    kept: Mapping[str, str] | None = None  # chosen fields of the sample's own JSON, such as its licence

    @property
    def num_segments(self) -> int | None:
        """Segments of the label map; None where there is none."""
        return len(self.segments) if self.status == OK else None
