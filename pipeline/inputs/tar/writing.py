"""WebDataset tars written: fixed member order and headers, so that racing writers write equal bytes."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO


def write_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A tar of (key, members by extension): equal samples give equal bytes, so that racing writers agree."""
    buffer = io.BytesIO()
    with writing(buffer) as write:
        for key, members in samples:
            write(key, members)
    return buffer.getvalue()


@contextmanager
def writing(out: IO[bytes]) -> Iterator[Callable[[str, Mapping[str, bytes]], None]]:
    """Write a tar sample by sample. Members without an extension, or with the name the writer uses for the key, cannot
    be stored in such a tar and are left out.
    """
    from webdataset import TarWriter

    with TarWriter(out, encoder=False, keep_meta=True, mtime=0, user="", group="") as writer:

        def write(key: str, members: Mapping[str, bytes]) -> None:
            writer.write({extension: data for extension, data in members.items() if extension} | {"__key__": key})

        yield write
