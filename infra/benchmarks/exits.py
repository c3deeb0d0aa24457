"""Exit codes, counted: commands on a complete run, many times over, beside a busy core.

    python infra/benchmarks/exits.py --runs 200 [--table infra/benchmarks/exits.md] [label status verify export]

What was counted is kept in --folder after every run: the same command goes on, of the same commit alone. --table puts
the counts into the table of that file. Exit 1 where any run of these commands ended with another code than 0.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from jobs.demo import write_shards

ROOT = Path(__file__).resolve().parents[2]
HEAD = "| command | runs | exit codes | median, s | commit |"
BUSY = "while True: pass"


def commands(folder: Path) -> dict[str, list[str]]:
    """Words of each command. An export goes where none is yet."""
    run, shards = str(folder / "run"), sorted(map(str, (folder / "photos").glob("*.tar")))
    tiny = ["--model", "tiny", "--image-size", "64", "--workers", "0"]
    return {
        "label": ["label", *shards, "--output", run, *tiny],
        "status": ["status", run],
        "verify": ["verify", run],
        "export": ["export", run, "--format", "webdataset", "--output", str(folder / "export")],
    }


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that never rests."""
    other = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def once(words: list[str], folder: Path) -> tuple[int, float]:
    """The exit code of a command, and how many seconds it took. What it said is kept where it failed."""
    shutil.rmtree(folder / "export", ignore_errors=True)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "jobs.shared.cli", *words], capture_output=True, cwd=ROOT)
    took = time.monotonic() - began
    code = done.returncode if done.returncode >= 0 else 128 - done.returncode  # by a signal, as a shell tells it
    if code:
        (folder / f"{words[0]}-{code}.txt").write_bytes(done.stdout + done.stderr)
    return code, took


def commit() -> str:
    """Of the code that is counted; `+` where it was changed since."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True, check=False).returncode
    return (name.stdout.strip() or "none") + ("+" if changed else "")


def row(name: str, made: list[tuple[int, float]], of: str) -> str:
    """A line of the table."""
    codes = ", ".join(f"{count:,} x {code}" for code, count in sorted(Counter(code for code, _ in made).items()))
    return f"| {name} | {len(made):,} | {codes} | {median(took for _, took in made):.1f} | {of} |"


def enter(table: Path, rows: dict[str, str]) -> None:
    """Put rows into the table of a file, each in the place of an older one of its command."""
    lines = table.read_text("utf-8").splitlines()
    at = lines.index(HEAD) + 2
    end = next((n for n, line in enumerate(lines[at:], at) if not line.startswith("|")), len(lines))
    there = {line.split("|")[1].strip(): line for line in lines[at:end]}
    table.write_text("\n".join([*lines[:at], *(there | rows).values(), *lines[end:]]) + "\n", "utf-8")


def main() -> int:
    """Count, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="COMMAND", default=["label", "status", "verify", "export"])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "exits")
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    folder, of = asked.folder.resolve(), commit()
    folder.mkdir(parents=True, exist_ok=True)
    write_shards(folder / "photos")
    words = commands(folder)
    if (ended := once(words["label"], folder)[0]) not in (0, 134):
        sys.exit(f"the run to count with could not be made: exit {ended}, see {folder}")
    rows, failed = {}, 0
    with busy_core():
        for name in asked.names:
            kept = folder / f"{name}-{of}.json"
            made = [tuple(one) for one in json.loads(kept.read_text())] if kept.exists() else []
            while len(made) < asked.runs:
                made.append(once(words[name], folder))
                kept.write_text(json.dumps(made))
                sys.stderr.write(f"\r{row(name, made, of)}")
            sys.stderr.write("\n")
            rows[name] = row(name, made[: asked.runs], of)
            failed += sum(code != 0 for code, _ in made[: asked.runs])
    sys.stdout.write("\n".join([HEAD, "|---|---|---|---|---|", *rows.values()]) + "\n")
    if asked.table:
        enter(asked.table, rows)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
