"""Which processor this is: reports say it, and what was timed on one says nothing about another."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

__all__ = ["processor"]


def processor() -> tuple[str, frozenset[str]]:
    """The processor's name and flags; Linux says both, other systems the name alone."""
    name, flags = platform.processor() or platform.machine(), frozenset[str]()
    if sys.platform != "linux":
        return name, flags
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return name, flags
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    return name, flags
