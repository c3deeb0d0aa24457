"""The head mean of attention on a CUDA device: all heads of a tile are summed in registers, memory is touched once.

Letters: B images, H heads, n cells, d channels of a head.
"""

import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 128, 128  # of the tile one program owns


@triton.jit  # type: ignore[untyped-decorator]
def _add_exponentials_kernel(  # type: ignore[no-untyped-def]
    mean,
    query,
    key,
    shift,
    scale,
    cells,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    heads: tl.constexpr,
    channels: tl.constexpr,
    padded: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
):
    image = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    column = tl.program_id(1) * columns + tl.arange(0, columns)
    channel = tl.arange(0, padded)
    row_inside, column_inside = row < cells, column < cells
    query_mask = row_inside[:, None] & (channel < channels)[None, :]
    key_mask = (channel < channels)[:, None] & column_inside[None, :]
    query_tile = query + image * query_image + row[:, None] * query_row + channel[None, :]
    key_tile = key + image * key_image + column[None, :] * key_row + channel[:, None]
    shift_tile = shift + image * heads * cells + row
    total = tl.zeros((rows, columns), dtype=tl.float32)
    for _ in range(heads):
        q = tl.load(query_tile, mask=query_mask, other=0.0)
        k = tl.load(key_tile, mask=key_mask, other=0.0)
        log_sum = tl.load(shift_tile, mask=row_inside, other=0.0)
        total += tl.exp2(tl.dot(q, k, input_precision="ieee") * scale - log_sum[:, None])
        query_tile += query_head
        key_tile += key_head
        shift_tile += cells
    place = mean + image * cells * cells + row[:, None].to(tl.int64) * cells + column[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    tl.store(place, tl.load(place, mask=inside, other=0.0) + total, mask=inside)


def add_exponentials(mean: Tensor, query: Tensor, key: Tensor, shift: Tensor, scale: float) -> None:
    """Add the sum over heads of 2^(scale * query key^T - shift) to `mean` [B, n, n], in place.

    query, key: [B, H, n, d]; shift: float32 [B, H, n]. Products of half precision are summed in float32.
    """
    images, heads, cells, channels = query.shape
    query, key = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key))
    grid = (triton.cdiv(cells, ROWS), triton.cdiv(cells, COLUMNS), images)
    _add_exponentials_kernel[grid](
        mean,
        query,
        key,
        shift.contiguous(),
        scale,
        cells,
        *query.stride()[:3],
        *key.stride()[:3],
        heads=heads,
        channels=channels,
        padded=max(16, triton.next_power_of_2(channels)),
        rows=ROWS,
        columns=COLUMNS,
        num_warps=8,
    )
