"""Tables of files and commands, made from what the code says of itself: `python infra/docs/tables.py` writes them.

Each package's README.md holds one sentence, a table of its files between two marks, and whatever else a person wrote
there. `infra/docs/commands.md` holds every command with its flags, `infra/docs/models.md` the licence of every model.
`--check` writes nothing and exits with 1 where something is out of date.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- files: made by infra/docs/tables.py -->", "<!-- end of files -->"
LAYERS = ("diffseg", "pipeline", "jobs")
COMMANDS = ROOT / "infra" / "docs" / "commands.md"
MODELS = ROOT / "infra" / "docs" / "models.md"
LICENCES, LICENCES_END = "<!-- licences: made by infra/docs/tables.py -->", "<!-- end of licences -->"


def main() -> int:
    """Write what is out of date; the exit code."""
    stale = [path for path, text in documents() if not path.exists() or path.read_text() != text]
    for path, text in documents():
        if path in stale and "--check" not in sys.argv:
            path.write_text(text)
    for path in stale:
        sys.stdout.write(f"{'out of date' if '--check' in sys.argv else 'written'}: {path.relative_to(ROOT)}\n")
    return 1 if stale and "--check" in sys.argv else 0


def documents() -> Iterator[tuple[Path, str]]:
    """Every document that is made here, with its text."""
    for layer in LAYERS:
        for package in sorted(path.parent for path in (ROOT / layer).rglob("__init__.py")):
            if "entry" not in package.parts:
                yield package / "README.md", readme(package)
    yield COMMANDS, commands()
    yield MODELS, licences()


def readme(package: Path) -> str:
    """A package's README.md: its sentence and its table anew, the rest as it is."""
    path = package / "README.md"
    name = package.relative_to(ROOT).as_posix()
    written = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = written.partition(BEGIN)
    _, _, after = rest.partition(END)
    head = before if before.startswith("# ") else f"# {name}\n\n{sentence(package / '__init__.py')}\n\n"
    rows = "".join(f"| [{link}]({link}) | {said} |\n" for link, said in entries(package))
    return f"{head}{BEGIN}\n| | |\n|---|---|\n{rows}{END}{after or chr(10)}"


def entries(package: Path) -> Iterator[tuple[str, str]]:
    """Links to the packages below and the files of a package, each with its sentence."""
    for path in sorted(package.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            yield f"{path.name}/", sentence(path / "__init__.py")
    for path in sorted(package.glob("*.py")):
        if path.name != "__init__.py":
            yield path.name, sentence(path)


def sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    said = ast.get_docstring(ast.parse(path.read_text()))
    if not said:
        raise SystemExit(f"{path.relative_to(ROOT)}: a file opens by saying what it is")
    return " ".join(said.split("\n\n")[0].split()).replace("|", "\\|")


def commands() -> str:
    """Every command with its help and flags, from the command line itself."""
    sys.path.insert(0, str(ROOT))
    from jobs.shared.cli import app

    pages = ["# Commands\n\nMade from the command line itself. `diffseg COMMAND --help` prints the same.\n"]
    for path, command in walk("diffseg", typer.main.get_command(app)):
        pages.append(f"## {path}\n\n{(command.help or '').strip()}\n\n{flags(command)}")
    return "\n".join(pages).rstrip("\n") + "\n"


def licences() -> str:
    """The page of models with its table of licences anew."""
    sys.path.insert(0, str(ROOT))
    from diffseg.models import specs

    before, _, rest = MODELS.read_text().partition(LICENCES)
    _, _, after = rest.partition(LICENCES_END)
    rows = (
        f"| `{spec.name}` | {spec.repo or 'in this package'} | {spec.licence} |\n" for spec in specs.MODELS.values()
    )
    table = f"| name | on huggingface.co | licence |\n|---|---|---|\n{''.join(rows)}"
    return f"{before}{LICENCES}\n{table}{LICENCES_END}{after}"


def walk(path: str, command: object) -> Iterator[tuple[str, object]]:
    """Commands and their sub-commands, in the order of the help."""
    for name, sub in getattr(command, "commands", {}).items():
        yield f"{path} {name}", sub
        yield from walk(f"{path} {name}", sub)


def flags(command: object) -> str:
    """The arguments and options of a command as a table."""
    rows = []
    for parameter in command.params:  # type: ignore[attr-defined]
        names = (
            ", ".join([*parameter.opts, *parameter.secondary_opts])
            if parameter.param_type_name == "option"
            else parameter.name.upper()
        )
        said = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        rows.append(f"| `{names}` | {said} |\n")
    return "| | |\n|---|---|\n" + "".join(rows) if rows else ""


if __name__ == "__main__":
    sys.exit(main())
