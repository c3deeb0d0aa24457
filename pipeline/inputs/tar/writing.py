"""WebDataset tars written: fixed member order and headers, so that racing writers write equal bytes."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO


def write_samples(samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> bytes:
    """A tar of (key, members by extension): the same samples give the same bytes, so that racing writers agree."""
    buffer = io.BytesIO()
    with writing(buffer) as write:
        for key, members in samples:
            write(key, members)
    return buffer.getvalue()


@contextmanager
def writing(out: IO[bytes]) -> Iterator[Callable[[str, Mapping[str, bytes]], None]]:
    """The same, sample by sample. Members without an extension, or named as the writer names the key, have no place in
    such a tar and are left out.
    """
    from webdataset import TarWriter

    with TarWriter(out, encoder=False, keep_meta=True, mtime=0, user="", group="") as writer:

        def write(key: str, members: Mapping[str, bytes]) -> None:
            writer.write({extension: data for extension, data in members.items() if extension} | {"__key__": key})

        yield write
