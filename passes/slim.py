"""Widths of channels, whole blocks, ranks and int8 in one plan under one target.

Every group of channels has its widths on the grid, every residual branch the choice to be gone; what each option
loses is measured on samples by running the rest of the network with the weights it would have, what it saves is
counted or timed. One solver takes the options of least loss that meet the target (see `search/plan.py`), the same
share of every group competes, and the winner is mended reader by reader and measured on samples set aside.

    allocation  latency      `target` is the share of the time kept: parts of the model are timed at every option, the
                             plan is cut and timed as a whole, and planned again until the ratio is met
                macs         the share of the multiply-adds kept
                sensitivity  the same, with one threshold on what each group loses by itself
    forms       width, gone, rank, int8

With `int8` among the forms (for `latency` alone), every layer is timed in float and in int8 at every width, and its
loss in int8 measured; conversions between neighbours have their price. What is cut is cut and mended in float, then
the layers that the plan has in int8 are quantized as `quantize` does it (ranges, repair, and a check on samples set
aside, that may put a layer back into float), and the target has to hold for the whole as it then is.

Lossy; needs samples of real inputs. Refuses where no plan meets the target, or where nothing is timed and `latency`
was asked for. Sources: ZipLM (Kurtic et al., NeurIPS 2023) for tables of measured time with second-order losses;
multiple-choice knapsacks by dynamic programming are textbook.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.criteria.table import CRITERIA, SAMPLED
from onnxslim_core.errors import RecipeError, UnsupportedModel
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Change, Context, Kind, Override

from ._groups import analysed, free_groups
from ._overrides import limits_of
from ._slimming import ALLOCATIONS, FORMS, Demand, Slimming

__all__ = ["Slim"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slim:
    """Widths, blocks and ranks in one plan under one target."""

    name: ClassVar[str] = "slim"
    kind: ClassVar[Kind] = Kind.LOSSY
    per_group: ClassVar[tuple[str, ...]] = ("round_to", "max_ratio", "min_width")

    target: float
    """Share kept of what the allocation counts: of the time for `latency`, of the multiply-adds else."""
    allocation: str = "latency"
    """`latency`, `macs` or `sensitivity`."""
    forms: tuple[str, ...] = ("width", "gone", "rank")
    """Kinds of options: `width` of channels, blocks that are `gone`, `rank` of layers, layers in `int8`."""
    criterion: str = "obs"
    """The order in which the channels of a group go."""
    round_to: int | str = "auto"
    """Widths are multiples of this; `auto` is the CPU's grid, 1 is off."""
    ignored: tuple[str, ...] = ()
    """Globs over node, initializer and group names that stay as they are."""
    max_ratio: float = 0.9
    """The largest share of a group that may go."""
    min_width: int = 1
    """The least channels that stay in a group."""
    repair: str = "least_squares"
    """How readers of what went are mended: `least_squares`, `scale`, `variance`, `bias`, `none`."""
    polish: int = 0
    """Swaps of a channel that goes for one that stays, tried in every group; pays after other criteria than `obs`."""
    override: tuple[Override, ...] = ()
    """Other limits for the groups that a glob fits, or `keep = true`."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("allocation", self.allocation, tuple(each for each in ALLOCATIONS if each not in ("uniform", "global"))),
            ("criterion", self.criterion, (*SAMPLED, *CRITERIA)),
            ("repair", self.repair, (*REPAIRS, "none")),
            *(("forms", form, FORMS) for form in self.forms),
        ):
            if value not in allowed:
                raise RecipeError(f"{name} of slim is '{value}'", f"one of {', '.join(allowed)}")
        if "int8" in self.forms and self.allocation != "latency":
            raise RecipeError(f"forms of slim holds 'int8', allocation is '{self.allocation}'", "allocation 'latency'")
        if not self.forms:
            raise RecipeError("forms of slim is empty", f"some of {', '.join(FORMS)}")
        if self.round_to != "auto" and not (isinstance(self.round_to, int) and self.round_to >= 1):
            raise RecipeError(f"round_to of slim is '{self.round_to}'", "'auto' or a number from 1")
        for name, share in (("target", self.target), ("max_ratio", self.max_ratio)):
            if not 0 < share < 1:
                raise RecipeError(f"{name} of slim is {share}", "a share between 0 and 1")
        if self.min_width < 1:
            raise RecipeError(f"min_width of slim is {self.min_width}", "a number from 1")
        if self.polish < 0:
            raise RecipeError(f"polish of slim is {self.polish}", "a number from 0")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Plan, carry out, mend."""
        if not context.samples or not context.samples_are_real:
            reason = "a plan by what is lost needs samples of real inputs: give --data"
            return [Change(self.name, (), "plan", reason=reason, guard="data_given")]
        try:
            channels = analysed(model, context, 1 - self.target)
        except UnsupportedModel as err:
            return [Change(self.name, (), "plan", reason=str(err), guard="sizes_known")]
        groups, refused = free_groups(self, channels)
        demand = Demand(
            name=self.name,
            allocation=self.allocation,
            target=self.target,
            forms=self.forms,
            criterion=self.criterion,
            limits=limits_of(self),
            repair=self.repair,
            ignored=self.ignored,
            polish=self.polish,
        )
        return Slimming(channels, groups, demand, context).run() + refused
