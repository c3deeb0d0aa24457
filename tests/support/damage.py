"""Every way to damage a tar, made from a sound one of five samples with an image and a caption each."""

import gzip
import io
import tarfile

import zstandard

from pipeline.inputs.tar.writing import write_samples
from tests.conftest import samples

SOUND = write_samples(samples(5))


def offsets():
    """Where each member's header and payload begin, and where the end mark is."""
    with tarfile.open(fileobj=io.BytesIO(SOUND)) as archive:
        members = archive.getmembers()
    end = members[-1].offset_data + (members[-1].size + 511) // 512 * 512
    return [(member.offset, member.offset_data) for member in members], end


MEMBERS, END = offsets()
SAMPLE_3 = MEMBERS[6][0]  # the header of the fourth sample's image


def flip(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


# what is damaged, the bytes, and how many samples can be salvaged
DAMAGED = {
    "truncated at a member boundary": (SOUND[:SAMPLE_3], 3),
    "truncated within a header": (SOUND[: SAMPLE_3 + 100], 3),
    "truncated within an image": (SOUND[: MEMBERS[6][1] + 50], 3),
    "truncated within a caption": (SOUND[: MEMBERS[7][1]], 4),
    "truncated before the end mark": (SOUND[:END], 5),
    "truncated within the padding of a member": (SOUND[: MEMBERS[6][1] + 700], 4),
    "damaged header": (flip(SOUND, SAMPLE_3 + 10), 3),
    "damaged header of the first member": (flip(SOUND, 10), 0),
    "damaged size in a header": (flip(SOUND, SAMPLE_3 + 130), 3),
    "zeros in place of a header": (SOUND[:SAMPLE_3] + bytes(512) + SOUND[SAMPLE_3 + 512 :], 3),
    "a block of noise between members": (SOUND[:SAMPLE_3] + b"\x07" * 512 + SOUND[SAMPLE_3:], 3),
    "a missing block": (SOUND[:SAMPLE_3] + SOUND[SAMPLE_3 + 512 :], 3),
    "two archives one after the other": (SOUND + SOUND, 5),
    "data behind the end mark": (SOUND + b"more", 5),
    "an empty file": (b"", 0),
    "no tar at all": (b"<html>not found</html>" * 100, 0),
}


def compressed(kind):
    """Damaged shards by what is wrong with them; as the zstd command writes them, with a checksum."""
    whole = (
        gzip.compress(SOUND, mtime=0) if kind == "gz" else zstandard.ZstdCompressor(write_checksum=True).compress(SOUND)
    )
    return {
        f"{kind}: truncated": whole[: len(whole) // 2],
        f"{kind}: the last bytes missing": whole[:-4],
        f"{kind}: a flipped byte": flip(whole, len(whole) // 2),
        f"{kind}: garbage behind": whole + b"garbage!",
        f"{kind}: not compressed at all": SOUND,
    }
