"""The shape annotations that everything here is written with.

Letters: B images of a batch, H x W pixels, h x w cells of the finest attention grid, N = h * w, n cells of any level,
A anchors, P proposals, L leaves of a tree.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, Int32, Integer, UInt8
else:
    try:  # jaxtyping checks shapes under test; a production install does without it
        from jaxtyping import Bool, Float, Int, Int32, Integer, UInt8
    except ImportError:

        class _Annotation:
            """`Float[Tensor, "B N"]` reads as plain `Tensor` where jaxtyping is absent."""

            def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
                return item[0]

        Bool = Float = Int = Int32 = Integer = UInt8 = _Annotation

__all__ = ["Bool", "Float", "Int", "Int32", "Integer", "UInt8"]
