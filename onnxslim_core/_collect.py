"""How often the garbage collector runs while graphs are worked on."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

__all__ = ["few_collections", "long_lived"]

_COLLECT_EVERY = (500_000, 20, 1_000)
"""Thresholds of the garbage collector: a graph is millions of objects that live long, and looking through them again
and again takes half of the time at 16,000 nodes."""


@contextlib.contextmanager
def few_collections() -> Iterator[None]:
    """Let the garbage collector run seldom, and as before afterwards; also usable as a decorator."""
    before = gc.get_threshold()
    if before[0]:  # where it is switched off, it stays off
        gc.set_threshold(*_COLLECT_EVERY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextlib.contextmanager
def long_lived() -> Iterator[None]:
    """What is made inside is not looked through by the garbage collector, and afterwards as seldom as what is old."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what somebody else set aside would come back
            gc.freeze()
            gc.unfreeze()
        if enabled:
            gc.enable()
