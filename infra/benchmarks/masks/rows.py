"""Bytes of rows with trees, beside the same rows without: medians of a run, and with fewer leaves or no vectors.

python infra/benchmarks/masks/rows.py RUN
"""

import sys
from statistics import median

from diffseg.cut import Cut
from pipeline.run.ledger import Ledger
from pipeline.table.leaf_map import decode_leaf_map, encode_leaf_map
from pipeline.table.trees import VECTOR, decode_tree

COLUMNS = ("label_map", "leaf_map", "tree", "vectors")
LEAVES = (64, 48, 32, 24, 16)
OTHERS = 200  # bytes of a row's other columns without its segments, about
SEGMENT = 36  # bytes of a segment


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


def main(run: str) -> None:
    """Print the table of a run, as Markdown."""
    rows = [row for row in Ledger.open(run).rows([*COLUMNS, "segments"]) if row["tree"]]
    say(f"{len(rows)} rows")
    for name in COLUMNS:
        say(f"{name}: {median(len(row[name] or b'') for row in rows):.0f} bytes")
    plain = [len(row["label_map"]) + OTHERS + SEGMENT * len(row["segments"]) for row in rows]
    say("| leaves at most | leaves | row / plain row | without vectors |\n|---|---|---|---|")
    for most in LEAVES:
        counts, alone, both = [], [], []
        for row, own in zip(rows, plain, strict=True):
            of_leaf = Cut(segments=most).of(decode_tree(row["tree"]))
            leaves = int(of_leaf.max()) + 1
            leaf_map = encode_leaf_map(of_leaf[decode_leaf_map(row["leaf_map"])])
            counts.append(leaves)
            alone.append((own + len(leaf_map) + 20 * leaves - 14) / own)
            both.append(alone[-1] + VECTOR.itemsize * leaves / own)
        say(f"| {most} | {median(counts):g} | {median(both):.2f} | {median(alone):.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
