"""Let a branch read only the channels that matter most to it, by a Gather before its BatchNormalization.

    x -> Gather(kept, axis=1) -> BatchNormalization -> Relu -> Conv

In a pre-activation ResNet or a DenseNet the stream x is shared: none of its channels can go, unless all readers agree.
Here every branch drops the share `ratio` of its own, first those that it does not hear at all (see `select_idle`), then
in the order of a `criterion` from samples. All Convs that were cut are then solved anew, one after the other, against
the model as it was (`repair`).

Lossy. A Gather copies memory and leaves onnxruntime's blocked layout: every branch is cut out and timed, and only
those that are measured faster are cut; in the end the whole model is timed, and all is taken back unless it is faster,
too. Refuses without samples or timing, other readers than Convs, groups, what is computed, and Convs of more than 6144
inputs per output.
Source: Liu et al., Network Slimming, ICCV 2017, section 3 (channel selection); He et al., ICCV 2017, 3.3 (sampler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxslim_core import graph as verbs
from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import Consumer, is_linear, taps_of, unsolvable
from onnxslim_core.calibration.diversity import advised_ridge
from onnxslim_core.calibration.moments import Moments
from onnxslim_core.calibration.study import study, too_large
from onnxslim_core.criteria.curves import Setting
from onnxslim_core.criteria.table import MEASURED, SAMPLED, curve_of
from onnxslim_core.errors import RecipeError
from onnxslim_core.graph import label_of
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Change, Context, Edit, Kind, glob_for
from onnxslim_core.search.grid import kept_classes

from ._select import GUARDS, Place, Selection, places_of, refusal_of
from ._select_clock import Clock

__all__ = ["SelectChannels"]

_CRITERIA = tuple(name for name in SAMPLED if name not in MEASURED)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SelectChannels:
    """Prune the input of one branch where the channels themselves have to stay."""

    name: ClassVar[str] = "select_channels"
    kind: ClassVar[Kind] = Kind.LOSSY

    ratio: float = 0.25
    """Share of the channels that every branch leaves out."""
    criterion: str = "obs"
    """What makes a channel matter to a branch; one from samples."""
    repair: str = "least_squares"
    """How the Convs make up for what they no longer read: `least_squares`, `scale`, `variance`, `bias`, `none`."""
    round_to: int | str = "auto"
    """Kept widths are rounded up to this many channels; `auto` is the CPU's grid, 1 is off."""
    ignored: tuple[str, ...] = ()
    """Globs over node names; a branch with one of them stays whole."""
    measure: Literal["auto", "never"] = "auto"
    """`auto`: only where it is measured faster; `never`: wherever it can be done."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("criterion", self.criterion, _CRITERIA),
            ("repair", self.repair, (*REPAIRS, "none")),
            ("measure", self.measure, ("auto", "never")),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} of select_channels is '{value}'", f"one of {', '.join(allowed)}")
        if not 0 < self.ratio < 1:
            raise RecipeError(f"ratio of select_channels is {self.ratio}", "a share between 0 and 1")
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of select_channels is '{self.round_to}'", "'auto' or a number from 1")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Choose widths, ask the clock branch by branch, choose channels, mend, ask the clock for the whole."""
        if not context.samples or not context.samples_are_real:
            return [self._refusal((), "data_given", "selecting channels needs samples of real inputs: give --data")]
        if self.measure == "auto" and context.latency is None:
            return [self._refusal((), "measured_faster", "nothing is timed, so nobody knows whether it would pay")]
        work = model.clone()
        refused: list[Change] = []
        drafts = [d for place in places_of(work) if (d := self._draft(place, refused)) is not None]
        slow = Clock(work, context).ask(drafts) if self.measure == "auto" else {}
        for draft, why in slow.items():
            refused.append(self._refusal((label_of(draft.place.node),), "measured_faster", why, draft.action))
        chosen = self._chosen(work, [draft for draft in drafts if draft not in slow], refused, context)
        if not chosen:
            return refused
        changes, names = [], verbs.Names(work)
        readers = list(dict.fromkeys(str(conv.name) for each in chosen for conv in each.place.readers))
        for each in chosen:
            details = {"removed": each.place.width - len(each.kept)}
            where = (label_of(each.place.node),)
            changes.append(Change(self.name, where, each.action, bytes_saved=each.bytes_saved, details=details))
            each.carry_out(Edit(names))
        if self.repair != "none":
            self._mend(model, work, readers, context)
        slower = Clock(model, context).why_not(model, work) if self.measure == "auto" else None
        if slower is not None:
            return [self._refusal((), "whole_faster", slower, f"select channels in {len(chosen)} branches"), *refused]
        model.graph = work.graph
        return changes + refused

    def _draft(self, place: Place, refused: list[Change]) -> Selection | None:
        """How many channels stay: those that the clock is asked with are any."""
        where = (label_of(place.node),)
        if (verdict := refusal_of(place, GUARDS, self)) is not None:
            refused.append(self._refusal(where, *verdict))
            return None
        glob = glob_for((str(node.name) for node in place.nodes), self.ignored)
        if glob is not None:
            refused.append(self._refusal(where, "not_ignored", f"'{glob}' is ignored"))
            return None
        wanted = max(int(np.ceil(place.width * (1 - self.ratio) - 1e-9)), 1)
        width = kept_classes(wanted, place.width, 1, self.round_to)
        if width == place.width:
            reason = f"what the ratio leaves of {place.width} channels is rounded up to the whole width"
            refused.append(self._refusal(where, "width_on_grid", reason))
            return None
        spread = np.linspace(0, place.width - 1, width).round().astype(np.int64)
        return Selection(place, spread)

    def _chosen(
        self, model: ir.Model, drafts: Sequence[Selection], refused: list[Change], context: Context
    ) -> list[Selection]:
        """The same widths with the channels that matter."""
        if not drafts:
            return []
        consumers = {
            conv: Consumer(conv, np.arange(draft.place.width, dtype=np.int32), taps_of(conv))
            for draft in drafts
            for conv in draft.place.readers
            if is_linear(conv)
        }
        batches = stacked(model, context.samples)
        moments = study(
            model, batches, consumers, seed=context.seed, threads=context.threads, progress=context.progress
        )
        found = []
        for draft in drafts:
            reasons = (
                too_large(consumers[conv]) if conv in consumers else f"{label_of(conv)} reads it, {unsolvable(conv)}"
                for conv in draft.place.readers
            )
            if (reason := next(filter(None, reasons), None)) is not None:
                refused.append(self._refusal((label_of(draft.place.node),), "readers_solvable", reason, draft.action))
                continue
            readers = [(consumers[conv], moments[conv]) for conv in draft.place.readers]
            found.append(Selection(draft.place, self._kept(draft, readers, context)))
        return found

    def _kept(
        self, draft: Selection, readers: Sequence[tuple[Consumer, Moments]], context: Context
    ) -> NDArray[np.int64]:
        """Channels that are not heard go first, then as the criterion says."""
        width = draft.place.width
        setting = Setting(seed=context.seed, ridge=advised_ridge(context.origins, width))
        curve = curve_of(self.criterion, readers, np.arange(width, dtype=np.int32), setting)
        order = [*np.flatnonzero(draft.place.dead()).tolist(), *curve.order.tolist()]
        gone = list(dict.fromkeys(order))[: width - len(draft.kept)]
        return np.setdiff1d(np.arange(width, dtype=np.int64), np.array(gone, np.int64))

    def _mend(self, reference: ir.Model, work: ir.Model, readers: Sequence[str], context: Context) -> None:
        job = Refit(
            reference,
            work,
            stacked(work, context.samples),
            {},
            readers,
            seed=context.seed,
            threads=context.threads,
            repair=self.repair,
        )
        job.run(context.progress)

    def _refusal(self, where: tuple[str, ...], guard: str, reason: str, action: str = "select channels") -> Change:
        return Change(self.name, where, action, reason=reason, guard=guard)
