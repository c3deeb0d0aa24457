"""What users import keeps its name, is typed, and costs only what it needs."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("diffseg", "diffseg.evaluation", "pipeline", "pipeline.datasets")
HEAVY = ("torch", "ray", "diffusers", "pyarrow", "scipy")
WRITTEN = ("README.md", "infra/docs/*.md")


def in_a_fresh_interpreter(code):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def documented_imports():
    """What the documents import from this project, in examples and between backticks."""
    pattern = re.compile(r"(?:^ *|`)(from (?:diffseg|pipeline|jobs)[\w.]* import \w+(?:, \w+)*)", re.MULTILINE)
    texts = [path.read_text() for glob in WRITTEN for path in sorted(ROOT.glob(glob))]
    documentation = ast.get_docstring(ast.parse((ROOT / "pipeline/__init__.py").read_text()))
    assert documentation is not None
    return sorted({line for text in (*texts, documentation) for line in pattern.findall(text)})


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_is_light_and_has_every_name_that_it_promises(package):
    said = in_a_fresh_interpreter(
        f"import sys, {package}\n"
        f"print(sorted(sys.modules.keys() & set({HEAVY})))\n"
        f"from {package} import *\n"
        f"print(set({package}.__all__) <= globals().keys())\n"
        f"print(hasattr({package}, 'no_such_name'))"
    )
    assert said.splitlines() == ["[]", "True", "False"]


def test_what_the_documents_import_can_be_imported():
    lines = documented_imports()
    for name in ("DiffSeg", "RunStream", "hungarian_match", "label"):
        assert any(re.search(rf"\b{name}\b", line) for line in lines), name
    said = in_a_fresh_interpreter(
        "\n".join([*lines, "import diffseg.evaluation", "print(diffseg.evaluation.hungarian_match.__name__)"])
    )
    assert said == "hungarian_match\n"


def test_pipeline_imports_nothing_before_the_search_path_is_settled():
    tree = ast.parse((ROOT / "pipeline/__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("package", ["diffseg", "pipeline", "jobs"])
def test_a_package_ships_its_types(package):
    assert (ROOT / package / "py.typed").is_file()
