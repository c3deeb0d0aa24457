"""Evaluation protocols: the meaning of a data set's label values, its files, and the view that is compared.

Sources: COCO-Stuff (Caesar et al., CVPR 2018) with the 27 coarse classes of IIC and PiCIE; Cityscapes (Cordts et al.,
CVPR 2016), its 27 classes of void-free label ids; the views are those of DiffSeg (arXiv 2308.12469).
"""

import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np

from diffseg.evaluation.scores import View, square_view, whole_view
from diffseg.types import IGNORE, Integer
from pipeline.errors import ConfigError
from pipeline.records import Category

THINGS = {"thing": True, "stuff": False, "": None}  # what a list of names says of a category


def published(name: str) -> bytes:
    """A list of this package: the keys to measure, one a line, or label values by class."""
    return (files("pipeline.evaluation") / "data" / name).read_bytes()


def _classes(name: str) -> Mapping[str, tuple[int, ...]]:
    """Label values by class; those of COCO are category ids less one, as label maps have them, 255 is unlabelled."""
    return {category: tuple(values) for category, values in json.loads(published(name)).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """The rules of a data set.

    classes: label values by class; None: values are regions of one image only.
    ignore: values that are no region, where there are no classes.
    label_file, image_file: paths below the data set's folder, group 1 the key; None: named as in a WebDataset shard.
    key: what of a sample's key, which may be a path, is the data set's own (group 1).
    objects: the extension of the label map that holds instances, 0 where there is none; None: not known.
    listed: the file that lists the keys to measure, one a line: beside the label maps, else in this package.
    """

    name: str
    classes: Mapping[str, tuple[int, ...]] | None = None
    ignore: tuple[int, ...] = ()
    view: Callable[[int, int], View] = whole_view
    label_file: str | None = None
    image_file: str | None = None
    key: str = r"(.+)$"
    objects: str | None = None
    listed: str | None = None

    @property
    def num_classes(self) -> int | None:
        """How many; None where the truth has regions only."""
        return None if self.classes is None else len(self.classes)

    @property
    def leading(self) -> str:
        """The measure by which single images are ranked."""
        return "covering" if self.classes is None else "miou"

    def key_of(self, key: str) -> str:
        """The data set's own key of a sample."""
        found = re.search(self.key, key)
        return found.group(1) if found else key

    def truth_of(self, values: Integer[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
        """Label values as classes or regions, IGNORE for values that the protocol ignores."""
        values = values.astype(np.int64)
        if self.classes is None:
            return np.where(np.isin(values, self.ignore), IGNORE, values) if self.ignore else values
        table = np.full(1 + max(max(ids) for ids in self.classes.values()) + 1, IGNORE)
        for index, ids in enumerate(self.classes.values()):
            table[list(ids)] = index
        return table[np.where((values < 0) | (values >= len(table)), len(table) - 1, values)]


PROTOCOLS: Mapping[str, Protocol] = {"regions": Protocol(name="regions")} | {
    name: Protocol(name=name, classes=_classes(f"{name}.json"), view=square_view, **own)
    for name, own in tomllib.loads(published("protocols.toml").decode()).items()
}


def protocol_named(name: str, classes: int | None = None, ignore: tuple[int, ...] = ()) -> Protocol:
    """A published protocol by name, or rules for a user's own label maps.

    classes: for `regions`, how many classes the values 0..classes-1 stand for (then measured as classes, whole image).
    ignore: for `regions`, values that are not compared.
    Raises ConfigError for an unknown name, or where a published protocol is to be changed.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}; there are {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if classes is None and not ignore:
        return protocol
    if protocol.classes is not None:
        raise ConfigError(f"--classes and --ignore are for the protocol 'regions'; {name} has its own")
    if classes is None:
        return replace(protocol, ignore=ignore)
    if classes < 1:
        raise ConfigError(f"--classes must be at least 1, got {classes}")
    values = {str(value): (value,) for value in range(classes) if value not in ignore}
    if not values:
        raise ConfigError(f"--ignore leaves none of {classes} classes")
    return replace(protocol, classes=values)


def with_names(protocol: Protocol, lines: Sequence[str]) -> tuple[Protocol, list[Category]]:
    """A protocol with names for its classes, and these as categories; none of a truth that has only regions.

    lines: for the values 0, 1, ... a name, then a tab and `thing` or `stuff` where that is known; empty: as they are.
    Raises ConfigError for a name that is there twice, and for anything else after a tab.
    """
    parts = [[part.strip() for part in line.partition("\t")] for line in lines]
    names = [name for name, _, _ in parts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--names: {twice[0]!r} is there twice; a category has one line")
    if odd := [kind for _, _, kind in parts if kind not in THINGS]:
        raise ConfigError(f"--names: after a tab stands thing or stuff, not {odd[0]!r}")
    classes = {names[int(value)] if lines else value: ids for value, ids in (protocol.classes or {}).items()}
    things = {name: THINGS[kind] for name, _, kind in parts}
    categories = [Category(at, each, things.get(each)) for at, each in enumerate(classes, 1)]
    return replace(protocol, classes=classes or None), categories
