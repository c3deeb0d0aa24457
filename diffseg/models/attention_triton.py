"""The head mean of attention on a CUDA device: all heads of a tile are summed in registers, memory is touched once.

Letters: B images, H heads, n cells, d channels of a head.

Registers, shared memory and limits on each architecture: `infra/benchmarks/kernel.md`.
"""

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 16  # channels of a product, the minimum of tensor cores: 40 channels are padded to 48, not 64


class Tile(NamedTuple):
    """Launch parameters of the kernel. rows, columns: of the map; stages: loads in flight, each with a buffer."""

    rows: int
    columns: int
    warps: int
    stages: int


def tile_of(dtype: torch.dtype, channels: int) -> Tile:
    """The tile that fits the shared memory and the registers of every architecture from sm_80 on, twice.

    Wider tiles load less and spill; where even these do not fit, the launch raises Triton's OutOfResources.
    """
    if dtype == torch.float32:
        return Tile(64, 64, warps=4, stages=2)
    return Tile(64, 128, warps=4, stages=3 if channels <= 96 else 2)


@triton.jit  # type: ignore[untyped-decorator]
def _add_part(  # type: ignore[no-untyped-def]
    target,
    part,
    first_row,
    first_column,
    cells,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    row, column = tl.arange(0, rows), tl.arange(0, columns)
    inside = (first_row + row < cells)[:, None] & (first_column + column < cells)[None, :]
    target += row[:, None] * cells + column[None, :]
    tl.store(target, tl.load(target, mask=inside, other=0.0) + part, mask=inside)


# `cells` and `heads` differ from level to level and from photo to photo: one compilation serves all.
@triton.jit(do_not_specialize=["cells", "heads", "query_head", "key_head"])  # type: ignore[untyped-decorator]
def _add_exponentials_kernel(  # type: ignore[no-untyped-def]
    mean,
    query,
    key,
    shift,
    scale,
    cells,
    heads,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    channels: tl.constexpr,
    alignment: tl.constexpr,
    chunk: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    first_row, first_column = tl.program_id(0) * rows, tl.program_id(1) * columns
    row, column = first_row + tl.arange(0, rows), first_column + tl.arange(0, columns)
    channel = tl.arange(0, chunk)
    row_inside, column_inside = row < cells, column < cells
    query_tile = query + image * query_image + row[:, None] * query_row + channel[None, :]
    key_tile = key + image * key_image + column[None, :] * key_row + channel[:, None]
    shift_tile = shift + image * heads * cells + row
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for head in range(heads):
        query_offset, key_offset = head * query_head * alignment, head * key_head * alignment
        log_sum = tl.load(shift_tile + head * cells, mask=row_inside, other=0.0)
        scores = tl.zeros((rows, columns), dtype=tl.float32)
        for first in tl.static_range(0, channels, chunk):
            inside = first + channel < channels
            q = tl.load(query_tile + (query_offset + first), mask=row_inside[:, None] & inside[None, :], other=0.0)
            k = tl.load(key_tile + (key_offset + first), mask=inside[:, None] & column_inside[None, :], other=0.0)
            # three products of TF32 for one of float32: about float32's own error, on tensor cores
            scores = tl.dot(q, k, scores, input_precision="tf32x3")
        total += tl.exp2(scores * scale - log_sum[:, None])
    # in halves: the addresses and the old values of a whole tile do not fit in registers beside the new ones
    half: tl.constexpr = columns // 2
    left, right = tl.split(total.reshape(rows, 2, half).permute(0, 2, 1))
    target = mean + (image * cells + first_row) * cells + first_column
    _add_part(target, left, first_row, first_column, cells, rows, half)
    _add_part(target + half, right, first_row, first_column + half, cells, rows, half)


def add_exponentials(mean: Tensor, query: Tensor, key: Tensor, shift: Tensor, scale: float) -> None:
    """Add the sum over heads of 2^(scale * query key^T - shift) to `mean` [B, n, n], in place.

    query, key: [B, H, n, d]; shift: float32 [B, H, n]. Products of half precision are summed in float32.
    Raises what Triton raises where the kernel cannot be compiled or started.
    """
    images, heads, cells, channels = query.shape
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    (query_image, query_head, query_row, _), (key_image, key_head, key_row, _) = query.stride(), key.stride()
    alignment = math.gcd(query_head, key_head, CHUNK)  # known to the compiler, it lets 16 bytes be loaded at once
    rows, columns, warps, stages = tile_of(query.dtype, channels)
    with torch.cuda.device_of(query):  # Triton launches on the current device, whichever the tensors lie on
        _add_exponentials_kernel[triton.cdiv(cells, rows), triton.cdiv(cells, columns), images](
            mean,
            query,
            key,
            shift.contiguous(),
            scale,
            cells,
            heads,
            query_image,
            query_head // alignment,
            query_row,
            key_image,
            key_head // alignment,
            key_row,
            channels=channels,
            alignment=alignment,
            chunk=CHUNK,
            rows=rows,
            columns=columns,
            num_warps=warps,
            num_stages=stages,
        )
