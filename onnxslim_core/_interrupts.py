"""Control-C, remembered.

A library that is being loaded when it comes may answer with an error of its own that does not say why (of numpy:
"importing the numpy C-extensions failed"). So whoever tells of an error asks here first.
"""

from __future__ import annotations

import signal
from types import FrameType

__all__ = ["came", "watch"]

_seen: list[int] = []


def watch() -> None:
    """Note every interrupt from now on, before it is raised as always; another handler than Python's own stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _note)


def came() -> bool:
    """Whether there was one."""
    return bool(_seen)


def _note(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    signal.default_int_handler(number, frame)
