"""A hook of mkdocs: which files of the repository are pages of the site, and where their links lead there.

On a code host a page links to files as they lie. Here a link to another page leads to its place in the site, and one to
a file that the site does not hold becomes its text alone.
"""

import os
import re
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("infra/docs/*.md", "infra/docs/*.svg", "infra/benchmarks/*.md", "infra/benchmarks/masks.jpg")
ELSEWHERE = {"infra/README.md": "cluster.md", "diffseg/tiny/README.md": "tiny.md"}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def pages() -> dict[str, str]:
    """Files of the repository by path, each with its place in the site."""
    found = sorted(path.relative_to(ROOT).as_posix() for pattern in PAGES for path in ROOT.glob(pattern))
    return {path: path.removeprefix("infra/").removeprefix("docs/") for path in found} | ELSEWHERE


def on_files(files: Files, config: Any) -> Files:
    """Take the pages in place of what lies in mkdocs' own folder."""
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    for path, place in pages().items():
        inclusion = InclusionLevel.INCLUDED
        files.append(File.generated(config, place, abs_src_path=os.fspath(ROOT / path), inclusion=inclusion))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The page's text with links that hold in the site."""
    source = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    return LINK.sub(lambda link: _relinked(link, source, page.file.src_uri), markdown)


def _relinked(link: re.Match[str], source: str, place: str) -> str:
    text, target = link.groups()
    path, mark, anchor = target.partition("#")
    if not path or "://" in path:
        return link.group()
    there = pages().get(normpath(f"{dirname(source)}/{path}"))
    return f"[{text}]({relpath(there, dirname(place) or '.')}{mark}{anchor})" if there else text
