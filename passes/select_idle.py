"""Let a branch read only the channels that it hears, by a Gather before its BatchNormalization.

    x -> BatchNormalization -> Relu -> Conv      x read elsewhere too, as in pre-activation ResNets and DenseNets
    x -> Gather(kept, axis=1) -> BatchNormalization -> Relu -> Conv     with parameters and input channels of the kept

A channel that others need cannot go, but this branch does not hear it where gamma is 0 and what follows makes 0 of
beta (a Relu of a beta that is not positive), or where all its weights in the Convs are 0. Any elementwise nodes may
stand between; Convs of any rank, several of them.

Exact. Done only where the branch, cut out and timed, is measured to be faster: the Gather copies memory and leaves
onnxruntime's blocked layout. The kept width is on the grid of the CPU. Refuses other readers than Convs, groups, and
what is computed.
Source: the channel selection layer of Liu et al., Network Slimming, ICCV 2017, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import label_of
from onnxslim_core.rewrite import Change, Context, Edit, Kind
from onnxslim_core.search.grid import kept_classes

from ._select import GUARDS, Guard, Place, Selection, places_of, refusal_of
from ._select_clock import Clock

__all__ = ["SelectIdle"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectIdle:
    """Leave out channels that one branch does not hear, where others need them."""

    name: ClassVar[str] = "select_idle"
    kind: ClassVar[Kind] = Kind.ALGEBRAIC
    guards: ClassVar[tuple[Guard, ...]] = GUARDS

    round_to: int | str = "auto"
    """Kept widths are rounded up to this many channels; `auto` is the CPU's grid, 1 leaves out all unheard ones."""
    measure: Literal["auto", "never"] = "auto"
    """`auto`: only where it is measured faster; `never`: wherever it can be done and the file does not grow."""

    def __post_init__(self) -> None:
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of select_idle is '{self.round_to}'", "'auto' or a number of channels from 1")
        if self.measure not in ("auto", "never"):
            raise RecipeError(f"measure of select_idle is '{self.measure}'", "auto or never")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Find what is not heard, branch by branch, then ask the clock."""
        refused: list[Change] = []
        selections: list[Selection] = []
        for place in places_of(model):
            if (verdict := refusal_of(place, self.guards, self)) is not None:
                refused.append(self._refusal(place, "select channels", *verdict))
                continue
            if (found := self._selection(place, refused)) is not None:
                selections.append(found)
        slow = Clock(model, context).ask(selections) if self.measure == "auto" else {}
        changes = [self._refusal(s.place, s.action, "measured_faster", why) for s, why in slow.items()]
        names = verbs.Names(model)
        for each in selections:
            if each in slow:
                continue
            details = {"removed": each.place.width - len(each.kept)}
            done = Change(
                self.name, (label_of(each.place.node),), each.action, bytes_saved=each.bytes_saved, details=details
            )
            each.carry_out(Edit(names))
            changes.append(done)
        return changes + refused

    def _selection(self, place: Place, refused: list[Change]) -> Selection | None:
        """The channels that stay, where fewer do."""
        dead = np.flatnonzero(place.dead())
        if not dead.size:
            return None
        width = kept_classes(max(place.width - dead.size, 1), place.width, 1, self.round_to)
        action = f"leave out {dead.size} of {place.width} channels"
        if width == place.width:
            reason = f"{place.width - dead.size} of {place.width} is off the grid of widths that are not slower"
            refused.append(self._refusal(place, action, "width_on_grid", reason))
            return None
        kept = np.setdiff1d(np.arange(place.width), dead[: place.width - width])
        found = Selection(place, kept)
        if found.bytes_saved < 0:
            reason = f"the Gather takes {-found.bytes_saved} bytes more than it saves"
            refused.append(self._refusal(place, action, "not_bigger", reason))
            return None
        return found

    def _refusal(self, place: Place, action: str, guard: str, reason: str) -> Change:
        return Change(self.name, (label_of(place.node),), action, reason=reason, guard=guard)
