"""Categories of an export: their numbers, which of them are things and which stuff, and the regions that follow."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from diffseg.cut import box_of, renumbered
from diffseg.types import IGNORE, Int, Segment
from pipeline.datasets.samples import LabelledSample
from pipeline.errors import ConfigError
from pipeline.run.ledger import Ledger

OBJECT = "object"  # the category of all segments where no table says which they have


@dataclass(frozen=True, slots=True)
class Categories:
    """Categories by name. ids: from 1. stuff: what is not counted. table: whether a derived table names segments."""

    ids: dict[str, int]
    stuff: frozenset[str] = frozenset()
    table: bool = False

    def of(self, segment: Segment) -> str | None:
        """The category of a segment; None: unknown."""
        return segment.category if self.table else OBJECT

    def listed(self) -> list[dict[str, Any]]:
        """All of them as COCO lists them."""
        return [
            {"id": id_, "name": name, "supercategory": name, "isthing": int(name not in self.stuff)}
            for name, id_ in self.ids.items()
        ]


def categories_of(ledger: Ledger, things: str | None, stuff: str | None) -> Categories:
    """The categories of a ledger's table; OBJECT alone where it has none.

    things, stuff: names, separated by commas, that are so whatever the table says. What neither says is a thing, unless
    things were named. Raises ConfigError for names that the table does not have, and where there is no table.
    """
    known = {each.name: each for each in ledger.categories_table}
    counted = {name: not things if each.thing is None else each.thing for name, each in known.items()}
    asked = [
        (name.strip(), flag)
        for flag, text in (("--things", things), ("--stuff", stuff))
        if text
        for name in text.split(",")
    ]
    for name, flag in asked:
        if not ledger.categories:
            raise ConfigError(f"{flag} names categories, which a table has: name that with --categories")
        if name not in known:
            raise ConfigError(f"{flag}: {ledger.categories} has no {name!r}; it has {', '.join(known)}")
        if dict(asked)[name] != flag:
            raise ConfigError(f"--things and --stuff both name {name!r}")
        counted[name] = flag == "--things"
    if not ledger.categories:
        return Categories({OBJECT: 1})
    ids = {name: each.id for name, each in known.items()}
    return Categories(ids, frozenset(name for name, thing in counted.items() if not thing), table=True)


def category_map(sample: LabelledSample, categories: Categories) -> Int[np.ndarray, "H W"]:
    """The id of each pixel's category; IGNORE where it is void or unknown."""
    of_segment = np.full(max((each.id for each in sample.segments), default=IGNORE) + 1, IGNORE)
    for each in sample.segments:
        of_segment[each.id] = categories.ids.get(each.category or "", IGNORE)
    return renumbered(sample.label_map, of_segment)


def regions_of(
    sample: LabelledSample, categories: Categories, min_area: float
) -> tuple[Int[np.ndarray, "H W"], list[tuple[int, Segment]]]:
    """Instances of things, and stuff, one region a category; void where a segment's category is unknown.

    min_area: share of the image; smaller instances are void. Returns a map of regions, numbered by their first
    instances, and each of them with the id of its first segment. The score of stuff is the mean of its parts' by area.
    """
    instances, owners = sample.instances
    by_id = {each.id: each for each in sample.segments}
    areas = np.bincount(instances.ravel() + 1, minlength=len(owners) + 1)[1:]
    parts: dict[int | str, list[int]] = {}
    for number, owner in enumerate(owners.tolist()):
        if owner not in by_id or (name := categories.of(by_id[owner])) is None:
            continue
        if name in categories.stuff:
            parts.setdefault(name, []).append(number)
        elif areas[number] >= min_area * instances.size:
            parts[number] = [number]
    region = np.full(len(owners), IGNORE)
    for own in parts.values():
        region[own] = own[0]
    regions = renumbered(instances, region)
    boxes, found = ndimage.find_objects(regions + 1), []
    for own in parts.values():
        first, area = by_id[int(owners[own[0]])], int(areas[own].sum())
        scores = [by_id[int(owners[number])].score for number in own]
        score = first.score if len(own) == 1 else float(np.average(scores, weights=areas[own]))
        found.append((first.id, replace(first, id=own[0], area=area, box=box_of(boxes[own[0]]), score=score)))
    return regions, found
