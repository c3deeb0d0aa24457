"""What Triton and ptxas make of the capture kernel for GPUs that need not be there: memory, registers, spills, loads.

Run anywhere with the `dev` extra: `python infra/benchmarks/kernel.py`. It takes a few minutes the first time and writes
`kernel.md` beside this file; `--json` prints the facts instead, which is what the tests hold to limits.

Nothing here imitates a launch: the product's own function is called, with Triton's driver replaced by one that has an
architecture and no device, so that what is compiled is what would be compiled there.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))

from diffseg.models.fetch import cache_folder
from diffseg.models.unet.random_weights import LAYOUTS, Layout
from diffseg.models.unet.recognise import attention_levels
from infra.embedded.checkpoints import narrow, whole

SHARED_LIMITS = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}  # bytes a block may ask for; CUDA's own figures
# by CUDA's guide: bytes of shared memory of a multiprocessor, and the warps that it runs at once
MULTIPROCESSORS = {80: (167_936, 64), 86: (102_400, 48), 89: (102_400, 48), 90: (233_472, 64)}
RESERVED = 1024  # bytes of it a block
REGISTERS, REGISTER_UNIT = 65_536, 256  # of a multiprocessor, and how many are given to a warp at once
CARDS = {80: "A100", 86: "A10G, RTX 30", 89: "L4, RTX 40", 90: "H100, H200"}
DTYPES = ("bfloat16", "float16", "float32")
WARP = 32  # threads
KERNEL = Path(__file__).parents[2] / "diffseg" / "models" / "attention_triton.py"


@dataclass(frozen=True)
class Case:
    """One compilation. channels: of a head; launches: (heads, cells) of every level that shares it."""

    architecture: int
    dtype: str
    channels: int
    launches: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Facts:
    """What came out. shared, stack: bytes; spills, loads, copies, products: instructions of the machine code.

    compilations: how many the launches of the case needed.
    copies: from global to shared memory, past the registers. products: of tensor cores.
    """

    architecture: int
    dtype: str
    channels: int
    tile: tuple[int, int, int, int]
    compilations: int
    shared: int
    registers: int
    stack: int
    spills: int
    loads: dict[str, int]
    copies: dict[str, int]
    products: dict[str, int]


def levels(layout: Layout) -> set[tuple[int, int, int]]:
    """Every (heads, channels, cells) of self-attention in a layout, for square photos and for others."""
    unet = layout.unet
    found = set()
    for side, _ in attention_levels(unet):
        level = (unet["sample_size"] // side).bit_length() - 1
        heads = unet["attention_head_dim"]  # in this field diffusers keeps the number of heads
        heads = heads if isinstance(heads, int) else heads[level]
        channels = unet["block_out_channels"][level] // heads
        found |= {(heads, channels, cells) for cells in (side * side, side * (side - 1))}
    return found


def models() -> dict[int, dict[str, set[tuple[int, int]]]]:
    """Head size -> model -> its (heads, cells)."""
    layouts = LAYOUTS | {f"small {name}": narrow(whole(name)) for name in LAYOUTS}
    table: dict[int, dict[str, set[tuple[int, int]]]] = {}
    for name, layout in layouts.items():
        for heads, channels, cells in levels(layout):
            table.setdefault(channels, {}).setdefault(name, set()).add((heads, cells))
    return table


def cases(architectures: tuple[int, ...]) -> list[Case]:
    """The longest to compile first."""
    launches = {channels: tuple(sorted(set().union(*users.values()))) for channels, users in models().items()}
    return [
        Case(architecture, dtype, channels, launches[channels])
        for channels in sorted(launches, reverse=True)
        for dtype in DTYPES
        for architecture in architectures
    ]


class NoDevice:
    """A driver for Triton that compiles for an architecture and starts nothing."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.loaded: list[tuple[bytes, int]] = []  # machine code, bytes of shared memory
        self.utils = SimpleNamespace(load_binary=self._load, get_device_properties=self._properties)

    def get_current_device(self) -> int:
        """A number of its own for each architecture: Triton keeps what it knows by device."""
        return self.architecture

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> object:
        """What to compile for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.architecture, WARP)

    def launcher_cls(self, source: object, metadata: object) -> object:
        """What would start the kernel."""
        return lambda *arguments: None

    def _load(self, name: str, code: bytes, shared: int, device: int) -> tuple[str, str, int, int, int]:
        self.loaded.append((code, shared))
        return "module", "function", 0, 0, 1024  # registers and spills are read from the code

    def _properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_LIMITS[device]}


def compile_case(case: Case) -> Facts:
    """Launch every level of a case on nothing. Raises Triton's own errors, OutOfResources where it does not fit."""
    import torch
    import triton

    from diffseg.models.attention_triton import add_exponentials, tile_of

    torch.set_num_threads(1)
    dtype = getattr(torch, case.dtype)
    device = NoDevice(case.architecture)
    triton.runtime.driver.set_active(device)
    for heads, cells in case.launches:
        query = torch.empty((1, cells, heads, case.channels), dtype=dtype).transpose(1, 2)
        shift, mean = torch.empty((1, heads, cells)), torch.empty((1, cells, cells))  # pages that are never touched
        add_exponentials(mean, query, query, shift, 1.0)
    code, shared = device.loaded[0]
    usage, instructions = disassemble(code)
    spills = sum(count for name, count in instructions.items() if re.match("STL|LDL", name))
    kinds = {
        kind: {name: count for name, count in sorted(instructions.items()) if re.match(pattern, name)}
        for kind, pattern in {"loads": r"LDG\b", "copies": "LDGSTS|UTMALDG", "products": "HGMMA|HMMA"}.items()
    }
    return Facts(
        case.architecture,
        case.dtype,
        case.channels,
        tuple(tile_of(dtype, case.channels)),
        len(device.loaded),
        shared,
        usage["REG"],
        usage["STACK"],
        spills,
        **kinds,
    )


def disassemble(code: bytes) -> tuple[dict[str, int], Counter[str]]:
    """Resources as ptxas reports them, and how often each instruction stands in the machine code."""
    import triton

    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        command = [tool, "--dump-resource-usage", "--dump-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", text)}
    line = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", re.MULTILINE)
    return usage, Counter(line.findall(text))


def facts_of(case: Case, cache: Path, salt: str) -> Facts:
    """The facts of a case, from the cache where the kernel and the compiler are the same."""
    name = hashlib.sha256(f"{salt}{case}".encode()).hexdigest()[:32]
    path = cache / f"{name}.json"
    if not path.exists():
        os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
        facts = compile_case(case)
        made = path.with_suffix(f".{os.getpid()}")
        made.write_text(json.dumps(asdict(facts)))
        made.replace(path)
    return Facts(**json.loads(path.read_text()))


def compile_all(architectures: tuple[int, ...], cache: Path, processes: int) -> list[Facts]:
    """Every case, several at a time, in the order of the table."""
    import triton

    salt = "".join([triton.__version__, KERNEL.read_text(), Path(__file__).read_text()])
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(partial(facts_of, cache=cache, salt=salt), cases(architectures)))
    return sorted(found, key=lambda facts: (facts.channels, DTYPES.index(facts.dtype), facts.architecture))


def blocks(architecture: int, shared: int, registers: int, warps: int) -> int:
    """That a multiprocessor runs side by side: as many as its shared memory, registers and warps allow."""
    memory, most_warps = MULTIPROCESSORS[architecture]
    a_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    return min(memory // (shared + RESERVED), REGISTERS // (a_warp * warps), most_warps // warps)


def row(facts: Facts) -> str:
    """One line of the table."""
    rows, columns, warps, stages = facts.tile
    users = ", ".join(name for name in models()[facts.channels] if not name.startswith("small "))
    cells = [
        users or "the small layouts",
        facts.channels,
        facts.dtype,
        f"sm_{facts.architecture}",
        f"{rows} x {columns}, {warps}, {stages}",
        f"{facts.shared:,} of {SHARED_LIMITS[facts.architecture]:,}",
        facts.registers,
        facts.stack,
        facts.spills,
        blocks(facts.architecture, facts.shared, facts.registers, warps),
    ]
    cells += [", ".join(f"{count} {name}" for name, count in kind.items()) for kind in (facts.copies, facts.products)]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Compile, and write or print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architectures", type=int, nargs="+", choices=SHARED_LIMITS, default=list(SHARED_LIMITS))
    parser.add_argument("--cache", type=Path, default=cache_folder() / "kernel")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print the facts, write nothing")
    arguments = parser.parse_args()
    found = compile_all(tuple(arguments.architectures), arguments.cache, arguments.processes)
    if arguments.json:
        print(json.dumps([asdict(facts) for facts in found]))  # noqa: T201 - a script's answer
        return
    import triton

    header = ["models", "head", "dtype", "for", "tile, warps, stages", "shared bytes", "registers", "stack", "spills"]
    header += ["blocks a multiprocessor", "copies to shared memory", "products on tensor cores"]
    lines = [
        PROSE.format(triton=triton.__version__, cards=", ".join(f"sm_{a} ({c})" for a, c in CARDS.items())),
        f"| {' | '.join(header)} |",
        f"|{'---|' * len(header)}",
        *(row(facts) for facts in found),
    ]
    Path(__file__).with_suffix(".md").write_text("\n".join(lines) + "\n")


PROSE = """\
# The capture kernel, compiled

`python infra/benchmarks/kernel.py` wrote this with Triton {triton}, without a GPU, for {cards}.

Times need a GPU and are not here. `tests/models/test_attention_triton.py` holds every line to its limits.

The numbers of cells and of heads are not compiled in: all levels, models and photos with one head size share a line.
Every copy is of 16 bytes a thread (`.128`); a product of float32 is three of TF32. No model of the table needs the
plain way. Heads of 256 channels would in float32 on sm_86 and sm_89: they ask for more shared memory than there is.

Compiled once, not held to anything: with Triton 3.2, the oldest that an allowed torch brings, heads of 40 and 160 fit
sm_86 and sm_90 without spills as well; sm_120 fits (8 bytes of stack at 160); sm_100 refuses heads of 160, which then
go the plain way; sm_75 spills a kilobyte and a half in half precision.
"""

if __name__ == "__main__":
    main()
