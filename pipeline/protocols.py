"""How a data set is measured: what its label values mean, where its files lie, in which view the comparison is made.

Sources: COCO-Stuff (Caesar et al., CVPR 2018) with the 27 coarse classes of IIC and PiCIE; Cityscapes (Cordts et al.,
CVPR 2016), its 27 classes of void-free label ids; the views are those of DiffSeg (arXiv 2308.12469).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from diffseg.evaluation.scores import View, square_view, whole_view
from diffseg.types import IGNORE, Integer
from pipeline.curated import coco_stuff_keys
from pipeline.errors import ConfigError

COCO_STUFF_27: Mapping[
    str, tuple[int, ...]
] = {  # category ids less one, as the label maps have them; 255 is unlabelled
    "electronic": (*range(71, 77),),
    "appliance": (*range(77, 83),),
    "food": (*range(51, 61),),
    "furniture": (*range(61, 71),),
    "indoor": (*range(83, 91),),
    "kitchen": (*range(43, 51),),
    "accessory": (*range(25, 33),),
    "animal": (*range(15, 25),),
    "outdoor": (*range(9, 15),),
    "person": (0,),
    "sports": (*range(33, 43),),
    "vehicle": (*range(1, 9),),
    "ceiling": (101, 102),
    "floor": (100, *range(113, 118)),
    "food-stuff": (120, 121, 152, 169),
    "furniture-stuff": (97, 106, 107, 109, 111, 122, 129, 132, 155, 160, 164),
    "raw-material": (99, 131, 138, 142),
    "textile": (91, 92, 103, 104, 108, 130, 136, 140, 151, 166, 167),
    "wall": (*range(170, 177),),
    "window": (179, 180),
    "building": (94, 95, 127, 150, 157, 165),
    "ground": (110, 124, 125, 135, 139, 143, 144, 146, 148, 153, 158),
    "plant": (93, 96, 118, 123, 128, 133, 141, 162, 168),
    "sky": (105, 156),
    "solid": (126, 134, 149, 159, 161, 181),
    "structural": (98, 112, 137, 145, 163),
    "water": (119, 147, 154, 177, 178),
}
_CITYSCAPES = [
    "road",
    "sidewalk",
    "parking",
    "rail track",
    "building",
    "wall",
    "fence",
    "guard rail",
    "bridge",
    "tunnel",
    "pole",
    "pole group",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "caravan",
    "trailer",
    "train",
    "motorcycle",
    "bicycle",
]
CITYSCAPES_27: Mapping[str, tuple[int, ...]] = {name: (7 + i,) for i, name in enumerate(_CITYSCAPES)}

CURATED_LIST = "Coco164kFull_Stuff_Coarse_7.txt"  # 2,175 of val2017; published with IIC, PiCIE, STEGO and DiffSeg


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A data set's rules.

    classes: label values by class; None: values are regions of one image and mean nothing beyond it.
    ignore: values that are no region, where there are no classes.
    label_file, image_file: paths below the data set's folder, group 1 the key; None: named as in a WebDataset shard.
    key: what of a sample's key, which may be a path, is the data set's own (group 1).
    listed: the name of a file that lists the keys to measure, one a line; keys: those, where it is not beside the data.
    """

    name: str
    classes: Mapping[str, tuple[int, ...]] | None = None
    ignore: tuple[int, ...] = ()
    view: Callable[[int, int], View] = whole_view
    label_file: str | None = None
    image_file: str | None = None
    key: str = r"(.+)$"
    listed: str | None = None
    keys: Callable[[], frozenset[str]] | None = None

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
        """Label values as classes (or regions), IGNORE where the protocol does not look."""
        values = values.astype(np.int64)
        if self.classes is None:
            return np.where(np.isin(values, self.ignore), IGNORE, values) if self.ignore else values
        table = np.full(1 + max(max(ids) for ids in self.classes.values()) + 1, IGNORE)
        for index, ids in enumerate(self.classes.values()):
            table[list(ids)] = index
        return table[np.where((values < 0) | (values >= len(table)), len(table) - 1, values)]


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(name="regions"),
        Protocol(
            name="coco-stuff-27",
            classes=COCO_STUFF_27,
            view=square_view,
            label_file=r"(?:^|/|_)val2017/(\d{12})\.png$",
            image_file=r"(?:^|/)val2017/(\d{12})\.jpg$",
            key=r"([^/]+)$",
            listed=CURATED_LIST,
            keys=coco_stuff_keys,
        ),
        Protocol(
            name="cityscapes-27",
            classes=CITYSCAPES_27,
            view=square_view,
            label_file=r"(?:^|/)gtFine/val/[^/]+/([^/]+)_gtFine_labelIds\.png$",
            image_file=r"(?:^|/)leftImg8bit/val/[^/]+/([^/]+)_leftImg8bit\.png$",
            key=r"([^/]+?)(?:_leftImg8bit)?$",
        ),
    )
}


def protocol_named(name: str, classes: int | None = None, ignore: tuple[int, ...] = ()) -> Protocol:
    """A published protocol by name, or the rules for label maps of one's own.

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
