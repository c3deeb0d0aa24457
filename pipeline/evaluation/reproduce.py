"""Published rows of DiffSeg: their settings, the photos they were measured on, and whether a figure agrees.

Source: "Diffuse, Attend, and Segment" (arXiv 2308.12469), Stable Diffusion 1.4 at 512 x 512 without refinement. The
accuracy on Cityscapes is not compared.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from diffseg.config import SegmentConfig
from diffseg.evaluation.bootstrap import Interval
from diffseg.evaluation.scores import Summary
from pipeline.errors import ConfigError
from pipeline.evaluation.protocols import Protocol
from pipeline.evaluation.truth import PHOTO, Truth, files_by_key, open_truth
from pipeline.inputs import find, kinds, shards
from pipeline.inputs.folder.file_list import File, pack
from pipeline.inputs.folder.reading import root_of
from pipeline.records import Shard
from pipeline.storage.url import canonical, redact

ROUNDING = 0.0005  # published figures are percent with one decimal: each stands for an interval of its own


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """A row of the published table.

    photos: how many it was measured on. threshold: nats, in all three iterations. figures: shares by measure.
    """

    photos: int
    threshold: float
    figures: Mapping[str, float]

    @property
    def config(self) -> SegmentConfig:
        """The settings it was made with."""
        return SegmentConfig(
            mode="paper", thresholds=(self.threshold,) * 3, timestep=300, image_size=512, output_size="source"
        )

    def compare(self, summary: Summary) -> dict[str, "Comparison"]:
        """The figures of a run, by a protocol with classes, beside the published ones, by measure."""
        return {name: Comparison(published, getattr(summary, name)) for name, published in self.figures.items()}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published figure and the run's own, with the bootstrap interval over its photos."""

    published: float
    own: Interval

    @property
    def agrees(self) -> bool:
        """Whether the published figure lies inside the interval, which is widened by the figure's rounding alone."""
        return self.own.low - ROUNDING <= self.published <= self.own.high + ROUNDING


PUBLISHED: Mapping[str, PublishedRow] = {
    "coco-stuff-27": PublishedRow(2175, 1.1, {"accuracy": 0.725, "miou": 0.436}),
    "cityscapes-27": PublishedRow(500, 0.9, {"miou": 0.212}),
}


def published_row(protocol: str) -> PublishedRow:
    """The row of a protocol. Raises ConfigError where none was published."""
    if protocol not in PUBLISHED:
        raise ConfigError(f"--reproduce {protocol!r}: published are {', '.join(PUBLISHED)}")
    return PUBLISHED[protocol]


def open_photos(data: str, protocol: Protocol, row: PublishedRow, limit: int | None) -> tuple[Shard, Truth]:
    """The photos of a published row as one shard, and their truth.

    data: the folder where the data set was unpacked. limit: only so many photos, in the order of a hash of their keys,
    so that more of them include the fewer; None: all, which must be as many as the row was measured on.
    Raises ConfigError where photos or label maps are missing.
    """
    truth, root = open_truth(data, protocol), root_of(data)
    entries = {entry.url.removeprefix(redact(root)): entry for entry in find.walk(root, kinds.is_system).entries}
    files = files_by_key(entries, protocol)
    listed = files.keys() if truth.listed is None else truth.listed
    whole = {key: files[key][PHOTO] for key in listed if PHOTO in files.get(key, {})}
    if len(whole) < (limit or row.photos) or (limit is None and len(whole) > row.photos):
        missing = sorted(listed - whole.keys())[:1]
        example = f"; {missing[0]} lacks its photo or its label map" if missing else ""
        hint = "" if limit else ": --limit measures a part"
        raise ConfigError(
            f"{redact(data)}: {len(whole):,} photos of {protocol.name} have a label map, wanted are "
            f"{limit or row.photos:,}{hint}{example}"
        )
    keys = sorted(whole, key=lambda key: hashlib.blake2b(key.encode()).digest())[:limit]
    chosen = [entries[name] for name in sorted(whole[key] for key in keys)]
    listing = pack(File(entry.url.removeprefix(redact(root)), entry.size, entry.etag) for entry in chosen)
    url = f"{canonical(root)}/"
    shard = Shard(shards.shard_id(url), url, listing.size, listing.digest, root, listing.data)
    return shard, replace(truth, listed=frozenset(keys))
