"""Widths that onnxruntime's CPU kernels run at full speed.

With AVX-512 the blocked convolution kernels compute 16 output channels at a time and leave the fast path where the
input channels are no multiple of 4, so that 31 of 32 channels can take twice the time of 32. A table and not a
measurement, so that the same input gives the same bytes; the measured latency of the whole confirms it.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["admissible", "kept_classes"]

_BLOCK = 16
_SMALL = (4, 8, 12)
_SMALL_UNTIL = 32


def admissible(width: int, full: int, round_to: int | str) -> bool:
    """True where `width` of `full` channels is on the grid.

    Args:
        width: Channels kept.
        full: Channels there are; always admissible, since it is what the model has.
        round_to: `auto` for the grid of the CPU, or a number of channels; 1 admits every width.
    """
    if width == full:
        return True
    if isinstance(round_to, int):
        return width % round_to == 0
    return width % _BLOCK == 0 or (full <= _SMALL_UNTIL and width in _SMALL)


def kept_classes(wanted: int, classes: int, unit: int, round_to: int | str, beside: Sequence[int] = ()) -> int:
    """The least number of classes, at least `wanted`, whose channels are on the grid.

    Args:
        wanted: Classes to be kept at least.
        classes: Classes there are.
        unit: Channels of one class.
        round_to: As in `admissible`.
        beside: Channels of others on axes that are as wide as these and those together; whole blocks go from such an
            axis, so that it stays on the grid whatever goes of the others.
    """
    block = _BLOCK if isinstance(round_to, str) else round_to
    full = classes * unit
    for kept in range(max(wanted, 1), classes):
        width = kept * unit
        fits = [admissible(width + others, full + others, round_to) for others in (0, *beside)]
        if all(fits) and (not beside or (full - width) % block == 0):
            return kept
    return classes
