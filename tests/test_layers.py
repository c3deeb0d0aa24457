"""The shape of the tree: arrows point down only, heavy libraries have few owners, small commands import little."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ALLOWED = {"diffseg": {"diffseg"}, "pipeline": {"pipeline", "diffseg"}, "jobs": {"jobs", "pipeline", "diffseg"}}
OWNERS = {  # a heavy library, and the only files that may import it
    "ray": {
        "pipeline/cluster/ray_process.py",
        "pipeline/cluster/actor.py",
        "pipeline/cluster/metrics.py",
        "pipeline/bench/kills.py",
        "pipeline/bench/ray_data_baseline.py",
    },
    "diffusers": {"diffseg/models/unet/loading.py"},
    "pyarrow": {
        "pipeline/table/records.py",
        "pipeline/table/rows.py",
        "pipeline/table/images.py",
        "pipeline/table/concat.py",
    },
    "webdataset": {"pipeline/inputs/tar/reading.py"},
    "fsspec": {"pipeline/storage/filesystem.py", "diffseg/models/fetch.py"},
    "rich": {"jobs/shared/console.py"},
    "pydantic": {"pipeline/documents.py"},
    "tenacity": {"pipeline/storage/retry.py"},
    "pycocotools": {"pipeline/exports/rle.py"},
}
METHOD_NEEDS = {
    "torch",
    "diffusers",
    "transformers",
    "safetensors",
    "numpy",
    "scipy",
    "PIL",
    "fsspec",
    "huggingface_hub",
}
METHOD_MAY_USE = {"jaxtyping", "skimage", "triton"}  # guarded: the code runs without them
FILES = sorted(path for layer in ALLOWED for path in (ROOT / layer).rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down_and_heavy_libraries_have_owners(path):
    name = path.relative_to(ROOT).as_posix()
    layer = name.split("/")[0]
    for module in imported(path):
        top = module.split(".")[0]
        assert top not in ALLOWED or top in ALLOWED[layer], f"{name} imports {module}"
        assert name in OWNERS.get(top, {name}), f"{name} imports {module}, which belongs to {OWNERS.get(top)}"
        if layer == "diffseg":
            known = top in sys.stdlib_module_names | METHOD_NEEDS | METHOD_MAY_USE | {"diffseg"}
            assert known, f"{name} imports {module}, which a machine that only segments need not have"


def test_no_owner_is_named_that_does_not_import_its_library():
    there = {path.relative_to(ROOT).as_posix(): path for path in FILES}
    for library, owners in OWNERS.items():
        users = {
            name for name in owners & there.keys() if any(m.split(".")[0] == library for m in imported(there[name]))
        }
        assert users == owners & there.keys(), f"{library}: {owners - users} do not use it"


def modules_after(code):
    script = f"import sys\n{code}\nprint(' '.join(sorted(m for m in sys.modules if '.' not in m)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


def test_the_method_needs_neither_ray_nor_the_engine():
    blocked = (
        "ray",
        "pyarrow",
        "webdataset",
        "pydantic",
        "typer",
        "rich",
        "tenacity",
        "skimage",
        "jaxtyping",
        "beartype",
    )
    code = f"sys.modules.update(dict.fromkeys({blocked!r}))\nfrom diffseg import DiffSeg, segment_attention"
    assert "torch" in modules_after(code)


@pytest.mark.parametrize(
    "code",
    [
        "from jobs import cli",
        "from pipeline import compact, ledger, preview, status\nfrom pipeline.exports import export",
        "from diffseg import SegmentConfig\nimport diffseg.models.fetch, diffseg.models.unet.loading, diffseg.models.recognise",
    ],
)
def test_help_status_and_configuration_import_no_torch(code):
    heavy = {"torch", "ray", "diffusers", "transformers", "webdataset"}
    assert not heavy & modules_after(code)


def test_the_readme_maps_every_file():
    readme = (ROOT / "README.md").read_text()
    tree = readme[readme.index("## The tree") :]
    for layer in ALLOWED:
        listed = set(re.findall(r"^  (\S+\.py) ", tree[tree.index(f"\n{layer}/ ") :].split("\n\n")[0], flags=re.M))
        there = {path.relative_to(ROOT / layer).as_posix() for path in (ROOT / layer).rglob("*.py")}
        assert {name for name in there if not name.endswith("__init__.py")} <= listed, f"{layer}/: make the map whole"


def test_no_torch_is_allowed_that_diffusers_or_transformers_refuse():
    from diffusers import dependency_versions_table as diffusers
    from transformers import dependency_versions_table as transformers

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed, *refused = (
        Version(need.split(">=")[1]) for need in (needs[0], diffusers.deps["torch"], transformers.deps["torch"])
    )
    assert needs[0].startswith("torch>=")
    assert allowed >= max(refused)
