"""Shards of a run: patterns become pinned shards.

A shard's id names its outputs: ids of shards with one base name under different prefixes differ.
"""

import hashlib
from collections.abc import Iterable

from pipeline.errors import ConfigError
from pipeline.inputs import kinds
from pipeline.inputs.folder import reading
from pipeline.inputs.folder.reading import Folder
from pipeline.inputs.patterns import MOST, Note, expand
from pipeline.records import READER, Shard
from pipeline.storage import filesystem
from pipeline.storage.url import canonical, redact, stem


def pin(patterns: Iterable[str], reader: int = READER, note: Note = lambda line: None) -> list[Shard]:
    """Every shard the patterns name, once, in the order given, with the size and version it has now.

    reader: the version of the rules for samples. note: called with a line about inputs that are left out.

    Raises ConfigError for a pattern that matches nothing, a shard that is missing and a file that is no shard.
    """
    entries: dict[str, filesystem.Entry] = {}
    for pattern in patterns:
        for entry in expand(pattern, reader, note):
            if len(entries) > MOST:
                raise ConfigError(f"more than {MOST:,} shards; make several runs of them")
            known = entries.setdefault(_identity(entry, reader), entry)
            if (known.size, known.etag) != (entry.size, entry.etag):
                raise ConfigError(
                    f"{redact(entry.url)}: two shards that differ only in the query of their URL, which is "
                    "not recorded; give them different paths"
                )
    for entry in entries.values():
        if isinstance(entry, Folder) and entry.left_out:
            note(f"{redact(entry.url)}: {entry.left_out}")
    if not entries:
        raise ConfigError("no shards given: name tar files, globs or braces, for example 'photos-{00000..00009}.tar'")
    return [
        Shard(
            shard_id(url),
            url,
            entry.size,
            entry.etag,
            entry.url,
            entry.files if isinstance(entry, Folder) else "",
            reader,
        )
        for url, entry in entries.items()
    ]


def _identity(entry: filesystem.Entry, reader: int) -> str:
    """The canonical URL; that of a folder ends in a slash, that of a link has the link's name where only it tells the
    kind of shard.
    """
    url = canonical(entry.url)
    if reading.is_folder(entry.url):
        return f"{url}/"
    if reader > 1 and kinds.suffix(url) != kinds.suffix(redact(entry.url)):
        return canonical(entry.url, follow=False)
    return url


def shard_id(canonical_url: str, part: int = 0) -> str:
    """`<stem>-<12 hex digits of the canonical URL's blake2b>`. part: n for the n-th extension of a folder."""
    named = canonical_url + (f"#{part}" if part else "")
    digest = hashlib.blake2b(named.encode(), digest_size=6).hexdigest()
    return f"{stem(canonical_url)}-{digest}"
