"""The shape of the tree: one order of packages, few owners of heavy libraries, small folders, light commands."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("diffseg", "pipeline", "jobs")
# Packages and the files at the root of one, lowest first. Each may import itself and what stands before it.
ORDER = (
    *("diffseg.config", "diffseg.annotations", "diffseg.tree", "diffseg.prior", "diffseg.types", "diffseg.cut"),
    *("diffseg.ridges", "diffseg.transfer"),
    "diffseg.draw",
    *(
        "diffseg.method",
        "diffseg.labels",
        "diffseg.hierarchy",
        "diffseg.evaluation",
        "diffseg.models",
        "diffseg.segmenter",
    ),
    "diffseg",
    *("pipeline.searchpath", "pipeline.errors", "pipeline.logs", "pipeline.documents", "pipeline.concurrency"),
    *("pipeline.process", "pipeline.watch", "pipeline.flags", "pipeline.config", "pipeline.records"),
    *("pipeline.messages", "pipeline.storage", "pipeline.table", "pipeline.inputs", "pipeline.run"),
    *(
        "pipeline.derived",
        "pipeline.withdrawal",
        "pipeline.worker",
        "pipeline.datasets",
        "pipeline.gallery",
        "pipeline.pilot",
    ),
    *(
        "pipeline.driver",
        "pipeline.cluster",
        "pipeline.exports",
        "pipeline.evaluation",
        "pipeline.categories",
        "pipeline.review",
        "pipeline.labelling",
        "pipeline",
    ),
    *("pipeline.bench", "jobs.shared", "jobs.bench", "jobs"),
)
MOST_FILES = {"jobs": 24}  # in a folder beside __init__.py; 12 elsewhere
OWNERS = {  # a heavy library, and the only files that may import it
    "ray": {
        "pipeline/cluster/ray_process.py",
        "pipeline/cluster/ray_private.py",
        "pipeline/cluster/actor.py",
        "pipeline/cluster/metrics.py",
        "pipeline/bench/kills.py",
    },
    "diffusers": {"diffseg/models/unet/loading.py"},
    "pyarrow": {
        "pipeline/table/records.py",
        "pipeline/table/rows.py",
        "pipeline/table/filter.py",
        "pipeline/table/images.py",
        "pipeline/table/concat.py",
        "pipeline/table/values.py",
    },
    "webdataset": {"pipeline/inputs/tar/writing.py"},
    "fsspec": {
        "pipeline/storage/clients.py",
        "pipeline/storage/filesystem.py",
        "pipeline/storage/url.py",
        "diffseg/models/fetch.py",
    },
    "filelock": {"diffseg/models/cache.py"},
    "rich": {"jobs/shared/console.py"},
    "pydantic": {"pipeline/documents.py"},
    "tenacity": {"pipeline/storage/retry.py"},
    "pycocotools": {"pipeline/exports/rle.py", "pipeline/evaluation/recall.py"},
    "faiss": {"pipeline/categories/learning.py"},
    "sklearn": {"pipeline/categories/learning.py"},
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
    "filelock",
    "huggingface_hub",
}
METHOD_MAY_USE = {"jaxtyping", "skimage", "triton"}  # guarded: the code runs without them
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))


def imported(path):
    """Every module that a file imports, anywhere in it; of `from a import b`, a.b where that is a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if _is_module(whole) else node.module


def _is_module(name):
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def room_of(module):
    """The line of ORDER that a module belongs to: its package, or the file itself at the root of one."""
    parts = module.split(".")
    return parts[0] if parts[0] == "jobs" and not ROOT.joinpath(*parts[:2]).is_dir() else ".".join(parts[:2])


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_every_package_has_its_place_in_the_order():
    assert {room_of(module_of(path)) for path in FILES if "entry" not in path.parts} == set(ORDER)
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_down_and_heavy_libraries_have_owners(path):
    name = path.relative_to(ROOT).as_posix()
    here = ORDER.index(room_of(module_of(path))) if "entry" not in path.parts else len(ORDER)
    for module in imported(path):
        top = module.split(".")[0]
        if top in LAYERS:
            assert ORDER.index(room_of(module)) <= here, f"{name} imports {module}, which stands above it"
        assert name in OWNERS.get(top, {name}), f"{name} imports {module}, which belongs to {OWNERS.get(top)}"
        if name.startswith("diffseg/"):
            known = top in sys.stdlib_module_names | METHOD_NEEDS | METHOD_MAY_USE | {"diffseg"}
            assert known, f"{name} imports {module}, which a machine that only segments need not have"


def test_no_folder_is_crowded():
    files = (path for path in [*FILES, *(ROOT / "tests").rglob("*.py")] if path.stem != "__init__")
    count = Counter(path.parent.relative_to(ROOT).as_posix() for path in files)
    crowded = {folder: files for folder, files in count.items() if files > MOST_FILES.get(folder, 12)}
    assert not crowded


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
        "from jobs.shared import cli",
        "from pipeline.gallery import preview\nfrom pipeline.run import compact, ledger, status",
        "from pipeline.exports import export",
        "from diffseg import SegmentConfig\nfrom diffseg.models import fetch, recognise",
        "from diffseg.models import load",
        "from diffseg.models.unet import loading",
        "from diffseg.models.vit import loading",
    ],
)
def test_help_status_and_configuration_import_no_torch(code):
    heavy = {"torch", "ray", "diffusers", "transformers", "webdataset"}
    assert not heavy & modules_after(code)


def test_no_torch_is_allowed_that_diffusers_or_transformers_refuse():
    from diffusers import dependency_versions_table as diffusers
    from transformers import dependency_versions_table as transformers

    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    allowed, *refused = (
        Version(need.split(">=")[1]) for need in (needs[0], diffusers.deps["torch"], transformers.deps["torch"])
    )
    assert needs[0].startswith("torch>=")
    assert allowed >= max(refused)
