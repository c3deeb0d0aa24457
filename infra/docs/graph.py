"""The shape of the tree, measured and drawn: `python infra/docs/graph.py` writes both.

`infra/docs/packages.svg` shows which package imports which; `infra/docs/development.md` has the measures between two
marks. Imports and the order of packages are those that `tests/test_layers.py` holds the code to.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from html import escape
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.test_layers import FILES, LAYERS, ORDER, imported, module_of, room_of  # noqa: E402

PICTURE, PAGE = ROOT / "infra/docs/packages.svg", ROOT / "infra/docs/development.md"
BEGIN, END = "<!-- measures: made by infra/docs/graph.py -->", "<!-- end of measures -->"
CELL, ROW, MARGIN = 148, 62, 12  # pixels of the picture
STYLE = """
text { font: 12px system-ui, sans-serif; text-anchor: middle; fill: #1f2937 }
rect { stroke: #64748b }
.diffseg { fill: #dbeafe } .pipeline { fill: #dcfce7 } .jobs { fill: #fef3c7 }
path { fill: none; stroke: #64748b; stroke-opacity: .8 }
.also { stroke-opacity: .15 }
@media (prefers-color-scheme: dark) {
  text { fill: #e5e7eb } .diffseg { fill: #1e3a5f } .pipeline { fill: #14532d } .jobs { fill: #713f12 }
  rect, path { stroke: #94a3b8 }
}
"""


Edges = Mapping[str, set[str]]


def main() -> int:
    """Write what is out of date."""
    for path, text in documents():
        path.write_text(text)
    sys.stdout.write(measures(edges()))
    return 0


def documents() -> Iterator[tuple[Path, str]]:
    """The picture and the page, each with its text."""
    found = edges()
    yield PICTURE, drawn(found)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    yield PAGE, f"{before}{BEGIN}\n{measures(found)}{END}{rest.partition(END)[2]}"


def edges() -> dict[str, set[str]]:
    """Which packages, and files at the root of one, each of them imports."""
    found: dict[str, set[str]] = {room: set() for room in ORDER}
    for path in FILES:
        if "entry" not in path.parts:
            here = room_of(module_of(path))
            there = {room_of(name) for name in imported(path) if name.split(".")[0] in LAYERS}
            found[here] |= there - {here}
    return found


def floors(graph: Edges) -> dict[str, int]:
    """On which floor each stands: one above the highest that it imports. Imports upwards are not counted."""
    found: dict[str, int] = {}
    for room in graph:
        found[room] = 1 + max((found[other] for other in graph[room] if other in found), default=-1)
    return found


def circles(graph: Edges) -> list[list[str]]:
    """Groups of packages that import each other, directly or through others."""
    reached = {room: _reached(graph, room) for room in graph}
    groups = {tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]}
    return [list(group) for group in sorted(groups)]


def _reached(graph: Edges, start: str) -> set[str]:
    found: set[str] = set()
    left = list(graph[start])
    while left:
        if (room := left.pop()) not in found:
            found.add(room)
            left += graph[room]
    return found


def measures(graph: Edges) -> str:
    """The table: how many packages and imports, how high, how crowded."""
    lines = ["| | rooms | floors | imports among them |", "|---|---|---|---|"]
    for layer in LAYERS:
        own = [room for room in ORDER if room.split(".")[0] == layer]
        inner = {room: graph[room].intersection(own) for room in own}
        arrows = sum(map(len, inner.values()))
        lines.append(f"| `{layer}` | {len(inner)} | {1 + max(floors(inner).values())} | {arrows} |")
    lines.append(f"| all | {len(graph)} | {1 + max(floors(graph).values())} | {sum(map(len, graph.values()))} |")
    upwards = sum(ORDER.index(b) > ORDER.index(a) for a in graph for b in graph[a])
    cycles = "; ".join(", ".join(group) for group in circles(graph)) or "none"
    files = (path for path in [*FILES, *(ROOT / "tests").rglob("*.py")] if path.stem != "__init__")
    crowd = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    most = ", ".join(f"{count} in `{folder}/`" for folder, count in crowd.most_common(3))
    return (
        "\n".join(lines)
        + f"\n\nImports upwards: {upwards or 'none'}. Cycles: {cycles}. Most files in a folder: {most}.\n"
    )


def drawn(graph: Edges) -> str:
    """Packages in rows by their floor, the commands above; a line leads from each to what it imports below.

    It is faint where the way also leads through others that it imports.
    """
    height = floors(graph)
    rows = [
        list(row) for _, row in groupby(sorted(ORDER, key=lambda room: height[room]), key=lambda room: height[room])
    ]
    most = max(map(len, rows))
    width, tall = most * CELL + 2 * MARGIN, len(rows) * ROW + 2 * MARGIN
    at = {
        room: (round(width / 2 + (column - (len(row) - 1) / 2) * CELL), tall - MARGIN - ROW * floor - ROW // 2)
        for floor, row in enumerate(rows)
        for column, room in enumerate(row)
    }
    lines = [
        _line(at[a], at[b], also=any(b in _reached(graph, other) for other in graph[a]))
        for a in ORDER
        for b in sorted(graph[a])
    ]
    boxes = [_box(room, *at[room]) for room in ORDER]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}" role="img">'
    return "\n".join(
        [head, f"<title>Imports between packages</title><style>{STYLE}</style>", *lines, *boxes, "</svg>", ""]
    )


def _line(above: tuple[int, int], below: tuple[int, int], *, also: bool) -> str:
    (x, y), (u, v) = above, below
    y, v = y + 13, v - 13
    kind = ' class="also"' if also else ""
    return f'<path{kind} d="M{x} {y}C{x} {(y + v) // 2} {u} {(y + v) // 2} {u} {v}"/>'


def _box(room: str, x: int, y: int) -> str:
    half = CELL // 2 - 5
    return (
        f'<rect class="{room.split(".")[0]}" x="{x - half}" y="{y - 13}" width="{2 * half}" height="26" rx="5"/>'
        f'<text x="{x}" y="{y + 4}">{escape(room)}</text>'
    )


if __name__ == "__main__":
    sys.exit(main())
