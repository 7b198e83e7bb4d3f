"""Remove the channels that matter least, everywhere they reach.

Channels that must go together (over Add, Concat, Split, Reshape, attention) are one class; classes that appear in
the same tensors are one group, and in each group the classes of the lowest score go. Removal is exact in this sense:
the result equals the model with zeros multiplied in at every sum over the removed channels.

    allocation  uniform   the share `ratio` of every group
                global    one threshold on scores over their group's mean; `target` is the share of channels kept
                macs      the same, to the share `target` of the multiply-adds
                          (bn_scale has its threshold on the scale itself, as Network Slimming does)
    criterion   l1, l2, bn_scale, geometric_median, svd_leverage, random on weights alone; from samples apoz, wifv,
                thinet, lasso, omp, obs, trial (one file each in onnxslim_core/criteria, with its paper)

Lossy. With samples, every reader of removed channels is solved anew by least squares, one after the other, on what it
reads by then (`repair = "least_squares"`; `scale`, `variance` and `bias` change less of it). Without, the expected
value of a removed channel after BatchNormalization and its activation goes into the next bias (`repair = "bias"`).
With a criterion from samples, `macs` measures what each group loses. With `norm_width`, LayerNormalization,
RMSNormalization and means over channels are computed over the channels that stay, which no mask equals; without, the
width of a residual stream that is normalized stays. Refuses groups that reach an output, an input or an operator it
does not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.calibration.answers import Answers, answers_of
from onnxslim_core.calibration.batches import stacked
from onnxslim_core.calibration.consumers import (
    kept_outputs,
    nodes_reading,
    note_kept,
)
from onnxslim_core.calibration.diversity import advised_ridge
from onnxslim_core.channels.biases import add_shifts
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.channels.removal import remove_atoms
from onnxslim_core.criteria.bn_scale import has_scale
from onnxslim_core.criteria.table import CRITERIA, SAMPLED
from onnxslim_core.errors import RecipeError, UnsupportedModel
from onnxslim_core.repair.bias import expected_shifts
from onnxslim_core.repair.sequential import Refit
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Change, Context, Kind, Override
from onnxslim_core.search.widths import ALLOCATIONS, Candidate, Limits, Plan, allocate, share_kept

from ._groups import analysed, free_groups
from ._overrides import limits_of, with_overrides
from ._rows import probed
from ._slimming import Demand, Slimming

__all__ = ["PruneChannels"]

_MEASURED = ("latency", "sensitivity")
"""Allocations that ask what each group loses."""
_REPAIRS = ("auto", *REPAIRS, "none")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PruneChannels:
    """Remove whole channels, neurons and heads by a criterion."""

    name: ClassVar[str] = "prune_channels"
    kind: ClassVar[Kind] = Kind.LOSSY
    per_group: ClassVar[tuple[str, ...]] = ("ratio", "round_to", "max_ratio", "min_width")

    criterion: str = "l2"
    """What makes a channel matter."""
    allocation: str = "uniform"
    """How much goes where."""
    ratio: float | None = None
    """Share of every group removed, for `uniform`; 0.25 where nothing is said."""
    target: float | None = None
    """Share kept, of the channels for `global`, of the multiply-adds for `macs`."""
    round_to: int | str = "auto"
    """Kept widths are rounded up to this many channels; `auto` is the CPU's grid, 1 is off."""
    ignored: tuple[str, ...] = ()
    """Globs over node, initializer and group names; a group that one of them matches stays whole."""
    max_ratio: float = 0.9
    """The largest share of a group that may go."""
    min_width: int = 1
    """The least channels that stay in a group."""
    norm_width: bool = False
    """Whether norms and means over channels may lose some, and are then computed over the channels that stay."""
    repair: str = "auto"
    """`least_squares`, `scale`, `variance` (on samples), `bias`, `none`; `auto`: the first, without samples `bias`."""
    polish: int = 0
    """Swaps of a channel that goes for one that stays, tried in every group; for criteria from samples but `obs`."""
    override: tuple[Override, ...] = ()
    """Other `ratio`, `round_to`, `max_ratio` or `min_width` for the groups that a glob fits, or `keep = true`."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("criterion", self.criterion, (*CRITERIA, *SAMPLED)),
            ("allocation", self.allocation, (*ALLOCATIONS, *_MEASURED)),
            ("repair", self.repair, _REPAIRS),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} of prune_channels is '{value}'", f"one of {', '.join(allowed)}")
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of prune_channels is '{self.round_to}'", "'auto' or a number from 1")
        for name, share in (("ratio", self.ratio), ("target", self.target), ("max_ratio", self.max_ratio)):
            if share is not None and not (0 <= share < 1 or (name == "target" and share == 1)):
                raise RecipeError(f"{name} of prune_channels is {share}", "a share from 0 to 1")
        if self.min_width < 1:
            raise RecipeError(f"min_width of prune_channels is {self.min_width}", "a number from 1")
        if self.polish < 0:
            raise RecipeError(f"polish of prune_channels is {self.polish}", "a number from 0")
        if self.polish and not self._from_samples:
            raise RecipeError("polish of prune_channels needs a criterion from samples", f"one of {', '.join(SAMPLED)}")
        if self.allocation == "uniform" and self.target is not None:
            raise RecipeError("target of prune_channels needs another allocation", "uniform takes ratio")
        if self.allocation != "uniform" and self.target is None:
            raise RecipeError(
                f"allocation '{self.allocation}' of prune_channels needs target", "the share kept, 0 to 1"
            )
        if self.allocation != "uniform" and self.ratio is not None:
            raise RecipeError(f"allocation '{self.allocation}' of prune_channels takes target, not ratio")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Score, choose, remove, mend."""
        given = bool(context.samples) and context.samples_are_real
        asks = self.criterion if self.criterion in SAMPLED else self.allocation if self.allocation in _MEASURED else ""
        if not given and (asks or (self.repair in REPAIRS and self.repair != "bias")):
            what = asks or self.repair
            reason = f"{what} needs samples of real inputs: give --data"
            return [Change(self.name, (), "prune channels", reason=reason, guard="data_given")]
        try:
            share = self._amount() if self.allocation == "uniform" else 1 - self._amount()
            channels = analysed(model, context, share, widths=self.norm_width)
        except UnsupportedModel as err:
            return [Change(self.name, (), "prune channels", reason=str(err), guard="sizes_known")]
        limits = limits_of(self)
        groups, refused = free_groups(self, channels)
        if self._from_samples:
            return Slimming(channels, groups, self._demand(limits), context).run() + refused
        groups, more = self._comparable(groups)
        refused += more
        score, absolute = CRITERIA[self.criterion], self.criterion == "bn_scale"
        candidates = [
            Candidate(group, score(channels, group, context.seed), absolute, self._share(group)) for group in groups
        ]
        plan = allocate(channels, candidates, self.allocation, self._amount(), limits) if groups else Plan(())
        if (unreached := self._unreached(channels, groups, plan)) is not None:
            return [unreached, *refused]
        changes = self._tell(groups, plan, limits)
        if not plan.all():
            return changes + refused
        return [*changes, self._carry_out(channels, plan, context, given), *refused]

    def _carry_out(self, channels: ChannelGraph, plan: Plan, context: Context, given: bool) -> Change:
        """Remove what the plan says and mend the readers."""
        model, classes = channels.flow.model, set(plan.all())
        repair = self.repair if self.repair != "auto" else "least_squares" if given else "bias"
        gone = channels.gone(plan.all())
        details = {"macs_ratio": channels.macs(gone) / max(channels.macs(), 1)}
        sampled = given and repair in REPAIRS
        shifts = expected_shifts(channels, classes) if repair == "bias" and not sampled else []
        nodes, kept = nodes_reading(channels, plan.all()), kept_outputs(channels, gone)
        reference = model.clone() if sampled else None
        saved = remove_atoms(channels, gone)
        add_shifts(channels, shifts, gone)
        note_kept(model, kept)
        if reference is not None:
            widest = max((group.width for group in channels.groups), default=1)
            fit, probe = (stacked(model, each) for each in probed(context))
            plain, judge = model.clone(), Answers(answers_of(reference, probe, context.threads), context.parts)
            before = judge.lost(answers_of(model, probe, context.threads))
            job = Refit(
                reference,
                model,
                fit,
                kept,
                nodes,
                seed=context.seed,
                threads=context.threads,
                repair=repair,
                ridge=advised_ridge(context.origins, widest),
            )
            details["nodes_solved"] = job.run(context.progress)
            after = judge.lost(answers_of(model, probe, context.threads))
            details |= {"loss_unmended": before, "loss_mended": after}
            if not after < before:  # few samples, and a repair can do harm
                repair = "none, since it did not help on samples set aside"
                model.graph = plain.graph
        what = f"remove {len(classes)} channels in all, repair {repair}"
        return Change(self.name, (), what, bytes_saved=saved, details=details)

    def _demand(self, limits: Limits) -> Demand:
        """What is asked of a plan from samples."""
        return Demand(
            name=self.name,
            allocation=self.allocation,
            target=self._amount(),
            ratio=lambda group: self._share(group) or self._amount(),
            criterion=self.criterion,
            limits=limits,
            repair="least_squares" if self.repair == "auto" else self.repair,
            polish=self.polish,
        )

    @property
    def _from_samples(self) -> bool:
        """Whether samples say what goes, and not only how readers are mended."""
        return self.criterion in SAMPLED or self.allocation in _MEASURED

    def _share(self, group: Group) -> float | None:
        """The share of a group that goes, where an override says so."""
        return with_overrides(self, group).ratio if self.override else None

    def _amount(self) -> float:
        if self.allocation == "uniform":
            return 0.25 if self.ratio is None else self.ratio
        return 1.0 if self.target is None else self.target

    def _comparable(self, groups: list[Group]) -> tuple[list[Group], list[Change]]:
        """Groups whose scores mean the same: a scale and the norm of a filter do not."""
        if self.criterion != "bn_scale" or self.allocation == "uniform":
            return groups, []
        reason = "no BatchNormalization says its scale, which is what one threshold compares"
        return [group for group in groups if has_scale(group)], [
            Change(self.name, (group.name,), f"prune {group.width} channels", reason=reason, guard="scale_known")
            for group in groups
            if not has_scale(group)
        ]

    def _unreached(self, channels: ChannelGraph, groups: Sequence[Group], plan: Plan) -> Change | None:
        """A target that no plan meets: to cut everything to its floor in vain helps nobody."""
        least = share_kept(channels, groups, plan, self.allocation)
        if self.allocation == "uniform" or least <= self._amount():
            return None
        what = "multiply-adds" if self.allocation == "macs" else "channels that may go"
        reason = f"at least {least:.3f} of the {what} stay within round_to, max_ratio, min_width and what is free"
        action = f"keep no more than {self._amount():g} of the {what}"
        return Change(self.name, (), action, reason=reason, guard="target_reachable")

    def _tell(self, groups: Sequence[Group], plan: Plan, limits: Limits) -> list[Change]:
        """What goes of every group, or why nothing does."""
        changes = []
        for group, removed in zip(groups, plan.removed, strict=False):
            unit = f" of {group.unit}" if group.unit > 1 else ""
            if removed:
                action = f"remove {len(removed)} of {group.width} channels{unit}"
                changes.append(Change(self.name, (group.name,), action, details={"removed": len(removed)}))
                continue
            guard, reason = "width_on_grid", "no narrower width is on the grid or within the limits"
            if limits.kept(group, 1) < group.width:
                if self.allocation == "uniform":
                    reason = "what the ratio leaves is rounded up to the whole width"
                else:
                    guard, reason = "worth_cutting", "the plan takes as much elsewhere, where less is lost"
            changes.append(
                Change(self.name, (group.name,), f"prune {group.width} channels{unit}", reason=reason, guard=guard)
            )
        return changes
