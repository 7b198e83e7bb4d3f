"""The engine behind `slim`, `prune_channels` with samples and `drop_blocks`: options of all kinds in one plan.

    study    one pass of the samples: what every reader of channels sums over (moments)
    rows     per group the widths on the grid, per residual branch "gone": what each loses, measured on samples of
             their own by running the tail of the network with the weights it would have (`calibration.tails`)
    costs    multiply-adds, or the time of the parts at those widths (`measure.pieces`)
    choose   the rows of least loss under the target (`search.plan`)
    carry    cut, drop, solve the readers anew (`repair.sequential`); the same share everywhere competes, and what
             loses less on the samples set aside is what is kept

Under a latency target the cut model is timed against the original and the target of the plan moved until the ratio is
met: parts alone do not add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from onnxslim_core.calibration.tails import Tails
from onnxslim_core.channels.branches import drop, in_copy
from onnxslim_core.channels.groups import ChannelGraph, Group
from onnxslim_core.rewrite import Change, Context
from onnxslim_core.search.plan import Costs, Unit, cheapest, choose, loss_of

from ._costs import costs_of, scaled
from ._mending import Choice, Mended, carry_out, cut, mended
from ._narrowing import has_int8, int8_loss, narrowed, rounded
from ._precision import Precision
from ._rows import ALLOCATIONS, FORMS, Demand, Options

__all__ = ["ALLOCATIONS", "FORMS", "Demand", "Slimming"]

_NEAR = 1.5
"""A plan that is predicted to lose more than so many times the best is not mended to be compared."""
_WIDE = 0.15
"""An interval wider than this says too little, and the plan is timed again."""
_MIN_COSINE = 0.99
"""What a plan in int8 has to reach beside the same plan in float, in every part of every output, as in `quantize`."""
_STEP = 0.02
"""What a target is lowered by, at least, after a plan that misses."""
_ROUNDS = 5
"""Plans that are cut and timed, at most, until a latency target is met."""
_TRIES = 3
"""Plans with int8 that are carried out, at most: what cannot be int8 after all is left out of the next one."""
_OVER = 1.02
"""How far over its target a plan may be timed once it is carried out: it was under it when it was planned."""
_NEVER = 1e6
"""The loss of an option that is not to be taken."""


class Slimming:
    """One plan for one model.

    Args:
        channels: The channel graph of the model; the model is changed only at the end.
        groups: Groups that may be cut.
        demand: What is asked.
        context: Samples and measuring.
    """

    def __init__(self, channels: ChannelGraph, groups: Sequence[Group], demand: Demand, context: Context) -> None:
        self._channels, self._groups, self._demand, self._context = channels, groups, demand, context

    def run(self) -> list[Change]:
        """Plan, carry out, and say what was done."""
        with threadpool_limits(self._context.threads):
            self._options = Options(self._channels, self._groups, self._demand, self._context)
            if not self._options.units:
                return self._options.refused
            if self._demand.allocation == "uniform":
                return self._finish([self._same_share(self._demand.ratio)], costs_of(self._options))
            if self._demand.allocation == "latency":
                return self._timed(costs_of(self._options))
            return self._best(costs_of(self._options))

    def drop_one_by_one(self, count: int) -> list[Change]:
        """Drop the branch that costs least, then the one that costs least without it, and so on.

        Those that cost least each by itself compete, since what is lost before the repair is not what is lost after.
        """
        with threadpool_limits(self._context.threads):
            self._options = Options(self._channels, self._groups, self._demand, self._context)
            if not self._options.units:
                reason = "no branch starts from the very tensor that it is added to, and serves nothing else"
                return [Change(self._demand.name, (), "drop blocks", reason=reason, guard="has_blocks")]
            losses = {number: unit.rows[1].loss for number, unit in enumerate(self._options.units)}
            gone: list[int] = []
            while losses and len(gone) < count:
                self._context.progress("drop blocks", len(gone), count)
                gone.append(min(losses, key=lambda number: losses[number]))
                losses = self._without(gone) if len(gone) < count else {}
            alone = sorted(range(len(self._options.units)), key=lambda n: self._options.units[n].rows[1].loss)
            rivals = [tuple(int(n in those) for n in range(len(alone))) for those in (gone, alone[:count])]
            return self._finish(rivals, costs_of(self._options), near=float("inf"))

    def _without(self, gone: Sequence[int]) -> dict[int, float]:
        """What each further branch would cost, with these gone; by number of the unit."""
        work = self._options.model.clone()
        branches = in_copy(work, self._options.branches)
        for number in gone:
            drop(work, branches[number])
        left = [number for number in range(len(branches)) if number not in gone]
        tails = Tails(
            work,
            self._options.probe,
            [[branches[n].add] for n in left],
            self._context.threads,
            self._options.tails.answers(),
        )
        found = {}
        for number in left:
            found[number] = tails.lost({}, zeroed=branches[number].result)
            tails.done([branches[number].add])
        return found

    def _best(self, costs: Costs) -> list[Change]:
        """The plan under a target that can be counted, beside the same share everywhere."""
        target = self._demand.target * costs.total(self._options.units, (0,) * len(self._options.units))
        if self._demand.allocation == "sensitivity":
            choice = self._common_loss(costs, target)
        else:
            choice = choose(self._options.units, costs, target)
        if choice is None:
            return [self._unreached(costs), *self._options.refused]
        rivals = [choice] if self._demand.allocation == "sensitivity" else [choice, self._uniform(costs, target)]
        return self._finish(rivals, costs)

    def _common_loss(self, costs: Costs, target: float) -> Choice | None:
        """Every unit as narrow as one threshold on its own loss allows, the least threshold that meets the target."""
        levels = sorted({row.loss for unit in self._options.units for row in unit.rows})

        def under(level: float) -> Choice:
            return tuple(
                min((i for i, row in enumerate(unit.rows) if row.loss <= level), key=lambda i: (unit.rows[i].left, i))
                for unit in self._options.units
            )

        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high) // 2
            if costs.total(self._options.units, under(levels[middle])) <= target:
                high = middle
            else:
                low = middle + 1
        choice = under(levels[low])
        return choice if costs.total(self._options.units, choice) <= target else None

    def _timed(self, costs: Costs) -> list[Change]:
        """The plan under a latency target: planned, cut and timed until the ratio is met."""
        demand, options = self._demand, self._options
        if self._context.latency is None:
            reason = "allocation 'latency' needs timing: leave out --no-latency"
            return [Change(demand.name, (), "plan by latency", reason=reason, guard="timing_on"), *options.refused]
        costs = self._as_measured(costs)
        least, aim = 1.0, demand.target
        for _ in range(_TRIES):
            met, ratios = self._meet(costs, aim)
            least = min([least, *ratios.values()])
            if met is None:
                break
            rivals = [met, *self._rivals(costs, met)]
            shown = {"latency_planned": ratios[met]}
            if not any(has_int8(options, choice) for choice in rivals):
                return self._finish(rivals, costs, shown)
            found = self._finish_narrow(rivals, costs, shown)
            if isinstance(found, list):
                return found
            if found is not None:
                least, aim = min(least, found), aim * min(demand.target / found, 1.0)
        reason = f"the fastest plan within the limits was measured at {least:.2f} of the time"
        what = f"take no more than {demand.target:g} of the time"
        return [Change(demand.name, (), what, reason=reason, guard="target_reachable"), *options.refused]

    def _meet(self, costs: Costs, aim: float) -> tuple[Choice | None, dict[Choice, float]]:
        """The widest plan seen that takes no more than this share of the time, and the ratio of all that were timed."""
        units = self._options.units
        full = costs.total(units, (0,) * len(units))
        starts = [self._all_int8(), self._fastest(costs)] if any(self._all_int8()) else []
        low, high, target = 0.0, 1.0, aim
        met: Choice | None = None
        seen: dict[Choice, float] = {}
        for number in range(_ROUNDS):
            self._context.progress("plan by latency", number, _ROUNDS)
            choice = choose(units, costs, target * full, starts)
            if choice is None:
                low = target
            else:
                if choice not in seen:
                    seen[choice] = self._ratio(choice)
                if seen[choice] <= aim:
                    met, low = choice, target
                else:
                    high = target
            ratio = seen.get(choice, float("nan")) if choice is not None else float("nan")
            guess = target * aim / ratio if ratio == ratio else (low + high) / 2
            # a plan that just misses the ratio must not be planned again
            guess = min(guess, high - _STEP) if high <= target else guess
            target = guess if low < guess < high else (low + high) / 2
            if high - low < 0.01:
                break
        return met, seen

    def _all_int8(self) -> Choice:
        """Every layer in int8 that may be, and nothing else."""
        return tuple(
            int(isinstance(what, Precision) and unit.rows[-1].loss < _NEVER)
            for unit, what in zip(self._options.units, self._options.homes, strict=True)
        )

    def _fastest(self, costs: Costs) -> Choice:
        """Nothing cut, every layer in what takes less time: in int8, but for those that are slower."""
        units = self._options.units
        starts = [self._all_int8(), (0,) * len(units)]
        may = [number for number, row in enumerate(starts[0]) if row]
        return min((cheapest(units, costs, start, may) for start in starts), key=lambda each: costs.total(units, each))

    def _as_measured(self, costs: Costs) -> Costs:
        """Costs that say of the fastest network of which nothing is cut what it was measured to take."""
        whole = self._fastest(costs)
        if not any(whole):
            return costs
        full = costs.total(self._options.units, (0,) * len(whole))
        return scaled(costs, self._options.units, whole, self._ratio(whole) * full)

    def _rivals(self, costs: Costs, met: Choice) -> list[Choice]:
        """Other plans of about the same cost that keep the target: the same share everywhere, all int8, no int8."""
        options, target = self._options, costs.total(self._options.units, met)
        found = [self._uniform(costs, target, met)]
        if has_int8(options, met):
            found += [choose(self._only(row), costs, target, [self._all_int8()]) for row in (0, 1)]
        near = _NEAR * loss_of(options.units, met)
        fit = [c for c in dict.fromkeys(found) if c not in (None, met) and loss_of(options.units, c) <= near]
        return [choice for choice in fit if self._ratio(choice) <= self._demand.target]

    def _only(self, row: int) -> list[Unit]:
        """The units, of which those of int8 have but one row that may be taken."""
        return [
            replace(unit, rows=tuple(r if n == row else replace(r, loss=_NEVER) for n, r in enumerate(unit.rows)))
            if isinstance(what, Precision)
            else unit
            for unit, what in zip(self._options.units, self._options.homes, strict=True)
        ]

    def _ratio(self, choice: Choice) -> float:
        """Time of a plan over the original's; where the machine is too busy to tell, the median of three timings."""
        model = rounded(self._options, choice, cut(self._options, choice))
        return float("inf") if model is None else self._time_of(model)

    def _time_of(self, model: ir.Model) -> float:
        assert self._context.latency is not None
        timings = [self._context.latency(self._options.model, model)]
        while timings[0].high - timings[0].low > _WIDE and len(timings) < 3:
            timings.append(self._context.latency(self._options.model, model))
        return float(np.median([timing.ratio for timing in timings]))

    def _finish_narrow(
        self, choices: Sequence[Choice], costs: Costs, details: dict[str, Any]
    ) -> list[Change] | float | None:
        """The best plan carried out in int8; its ratio, where that misses the target; None where nothing can be int8.

        Layers that had to go back to float are kept in float by the next plan.
        """
        best, shown = self._mended_best(choices, costs, details, _NEAR)
        if not has_int8(self._options, best.choice):
            return [*self._tell(best.choice), carry_out(self._options, best, shown), *self._options.refused]
        found = narrowed(self._options, best, shown, _MIN_COSINE)
        if isinstance(found, str):
            self._leave_in_float({what.name for what in self._options.homes if isinstance(what, Precision)})
            return None
        ratio = self._time_of(found.model)
        if ratio > self._demand.target * _OVER:
            self._leave_in_float(found.floats)
            return ratio
        model = self._options.model
        model.graph, model.ir_version = found.model.graph, found.model.ir_version
        cut_down, in_int8 = found.changes
        in_int8 = replace(in_int8, details={**in_int8.details, "latency": ratio})
        return [*self._tell(best.choice), cut_down, in_int8, *self._options.refused]

    def _leave_in_float(self, names: set[str]) -> None:
        for number, what in enumerate(self._options.homes):
            if isinstance(what, Precision) and what.name in names:
                unit = self._options.units[number]
                rows = (unit.rows[0], *(replace(row, loss=_NEVER) for row in unit.rows[1:]))
                self._options.units[number] = replace(unit, rows=rows)

    def _uniform(self, costs: Costs, target: float, like: Choice | None = None) -> Choice | None:
        """The same share of every group, as little as meets the target; None where no share does.

        Args:
            costs: What the rows cost together.
            target: In their unit.
            like: A choice whose int8 layers are taken over.
        """
        for percent in range(1, 100):
            share = percent / 100
            choice = self._same_share(partial(_same, share), like)
            if costs.total(self._options.units, choice) <= target:
                return choice
        return None

    def _same_share(self, ratio: Callable[[Group], float], like: Choice | None = None) -> Choice:
        """So much of every group, rounded up to what stays; blocks stay."""
        choice = []
        for number, (unit, what) in enumerate(zip(self._options.units, self._options.homes, strict=True)):
            row = like[number] if like is not None and isinstance(what, Precision) else 0
            if isinstance(what, Group):
                wanted = self._demand.limits.kept(what, int(np.ceil(what.width * (1 - ratio(what)) - 1e-9)))
                gone = [0, *(len(each.payload.classes) for each in unit.rows[1:])]
                row = max(i for i, count in enumerate(gone) if count <= what.width - wanted)
            choice.append(row)
        return tuple(choice)

    def _unreached(self, costs: Costs) -> Change:
        least = tuple(int(np.argmin([row.left for row in unit.rows])) for unit in self._options.units)
        share = costs.total(self._options.units, least) / costs.total(
            self._options.units, (0,) * len(self._options.units)
        )
        counted = "channels that may go" if self._demand.allocation == "global" else "multiply-adds"
        limits = "round_to, max_ratio, min_width and what is free"
        reason = f"at least {share:.3f} of the {counted} stay within {limits}"
        what = f"keep no more than {self._demand.target:g} of the {counted}"
        return Change(self._demand.name, (), what, reason=reason, guard="target_reachable")

    def _finish(
        self,
        choices: Sequence[Choice | None],
        costs: Costs,
        details: dict[str, Any] | None = None,
        near: float = _NEAR,
    ) -> list[Change]:
        """Mend every candidate; the one that loses least on the probes is done to the model, with all samples."""
        candidates = list(dict.fromkeys(choice for choice in choices if choice is not None and any(choice)))
        if not candidates:
            reason = "the model is within the target as it is"
            return [Change(self._demand.name, (), "plan", reason=reason, guard="worth_cutting"), *self._options.refused]
        best, shown = self._mended_best(candidates, costs, details or {}, near)
        return [*self._tell(best.choice), carry_out(self._options, best, shown), *self._options.refused]

    def _mended_best(
        self, candidates: Sequence[Choice], costs: Costs, details: dict[str, Any], near: float
    ) -> tuple[Mended, dict[str, Any]]:
        """The candidate that loses least on the probes once it is mended, and what to say of it."""
        options = self._options
        near *= min(loss_of(options.units, choice) for choice in candidates)
        # no limit times no loss is no number, and then nobody is over the limit
        built = [mended(options, choice) for choice in candidates if not loss_of(options.units, choice) > near]
        best = min(built, key=lambda each: each.lost + int8_loss(options, each.choice))
        if self._demand.repair != "none":
            plain = mended(options, best.choice, "none")
            best = plain if plain.lost < best.lost else best  # few samples, and a repair can do harm
        return best, {
            "predicted_loss": {str(n): loss_of(options.units, each) for n, each in enumerate(candidates)},
            "measured_loss": best.lost,
            "cost_ratio": costs.total(options.units, best.choice)
            / costs.total(options.units, (0,) * len(options.units)),
            "nodes_solved": best.solved,
            **details,
        }

    def _tell(self, choice: Choice) -> list[Change]:
        changes = []
        for unit, row, what in zip(self._options.units, choice, self._options.homes, strict=True):
            chosen = unit.rows[row]
            if len(unit.rows) == 1 or isinstance(what, Precision):
                continue
            if row == 0:
                action = "split the layer" if isinstance(what, ir.Node) else "drop the block"
                action = f"prune {what.width} channels" if isinstance(what, Group) else action
                reason = "the plan takes as much elsewhere, where less is lost"
                changes.append(Change(self._demand.name, (unit.name,), action, reason=reason, guard="worth_cutting"))
                continue
            details: dict[str, Any] = {"predicted_loss": chosen.loss}
            action = f"split it: {chosen.what}" if isinstance(what, ir.Node) else "drop the block"
            if isinstance(what, Group):
                removed = len(chosen.payload.classes)
                of = f" of {what.unit}" if what.unit > 1 else ""
                action = f"remove {removed} of {what.width} channels{of}"
                details["removed"] = removed
            changes.append(Change(self._demand.name, (unit.name,), action, details=details))
        return changes


def _same(share: float, group: Group) -> float:
    return share
