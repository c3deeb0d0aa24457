"""Label Studio: a task an image, whose masks are predictions that people take over.

tasks_<side>.json                           or tasks_<side>_<part>.json of several parts
label_config.xml                            the labelling interface that the project needs
images/<key>_<shard>_<index>.<extension>    the photos, which Label Studio serves from this folder where it is its
                                            LOCAL_FILES_DOCUMENT_ROOT; `diffseg import` finds corrections by these names
Formats: https://labelstud.io/guide/tasks, https://labelstud.io/tags/brushlabels. Its run lengths are those of
thi.ng's rle-pack over RGBA pixels: 32 bits the number of values, 5 a word's bits less one, four times 4 a length's bits
less one; then blocks: a bit that says whether one word is repeated, 2 bits which length, that length less one, words.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import quoteattr

import numpy as np

from diffseg.types import Bool
from pipeline.datasets.samples import LabelledSample
from pipeline.exports.categories import OBJECT
from pipeline.exports.parts import Add, PartWriter, growing_list

SERVED = "/data/local-files/?d="  # what Label Studio calls files below its LOCAL_FILES_DOCUMENT_ROOT
LENGTHS = (3, 4, 8, 16)  # bits of a block's length
CHANNELS = 4


@contextmanager
def tasks(writer: PartWriter) -> Iterator[Add]:
    """Masks as run lengths of whole images."""
    names = dict.fromkeys((*writer.work.categories.ids, OBJECT))
    labels = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    interface = f'<Image name="image" value="$image"/><BrushLabels name="tag" toName="image">{labels}</BrushLabels>'
    writer.put("label_config.xml", f"<View>{interface}</View>\n".encode())
    with writer.store.growing(f"tasks_{writer.side}{writer.suffix}.json") as out, growing_list(out) as add_task:

        def add(sample: LabelledSample) -> None:
            height, width = sample.label_map.shape
            sample = writer.put_found_photo("images", sample)
            shared = {"type": "brushlabels", "from_name": "tag", "to_name": "image", "image_rotation": 0}
            shared |= {"original_width": width, "original_height": height}
            found = []
            for each in sample.segments:
                value = {"format": "rle", "rle": packed(sample.label_map == each.id)}
                value["brushlabels"] = [writer.work.categories.of(each) or OBJECT]
                found.append({"id": f"{sample.name}.{each.id}", **shared, "value": value, "score": each.score})
            image = {"image": f"{SERVED}images/{sample.name}.{sample.extension}"}
            add_task({"data": image, "predictions": [{"result": found}]})

        yield add


def packed(mask: Bool[np.ndarray, "H W"]) -> list[int]:
    """The bytes of a mask's run lengths: every pixel is four equal values, 0 or 255."""
    values = mask.ravel()
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    bits = [f"{CHANNELS * values.size:032b}{7:05b}", *(f"{each - 1:04b}" for each in LENGTHS)]
    for start, length in zip(starts, CHANNELS * np.diff(starts, append=values.size), strict=True):
        for block in (*[1 << LENGTHS[-1]] * (int(length) >> LENGTHS[-1]), int(length) % (1 << LENGTHS[-1])):
            if block:
                which = next(at for at, size in enumerate(LENGTHS) if block <= 1 << size)
                bits.append(f"1{which:02b}{block - 1:0{LENGTHS[which]}b}{255 * int(values[start]):08b}")
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [*int(text, 2).to_bytes(len(text) // 8, "big")]


def unpacked(rle: list[int], size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """The mask of run lengths: where the last channel is not 0. Raises ValueError, TypeError where they are none."""
    height, width = size
    whole, at = CHANNELS * height * width, 0
    if len(rle) > 2 * whole + 64:
        raise ValueError("run lengths longer than the image")
    text = f"{int.from_bytes(bytes(rle), 'big'):0{8 * len(rle)}b}"

    def number(bits: int) -> int:
        nonlocal at
        at += bits
        if at > len(text):
            raise ValueError("run lengths that end too soon")
        return int(text[at - bits : at], 2)

    given, word, lengths = number(32), number(5) + 1, [number(4) + 1 for _ in LENGTHS]
    if given != whole:
        raise ValueError(f"run lengths of another image than {width} x {height}")
    values, counts, done = list[int](), list[int](), 0
    while done < whole:
        repeated, length = number(1), 1 + number(lengths[number(2)])
        values += [number(word) for _ in range(1 if repeated else length)]
        counts += [length] if repeated else [1] * length
        done += length
    if done > whole:
        raise ValueError("run lengths longer than the image")
    return np.repeat(np.array(values) > 0, counts).reshape(height, width, CHANNELS)[..., -1]
