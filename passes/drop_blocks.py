"""Drop whole residual branches, those whose absence the answers feel least.

    y = x + F(x)    ->    y = x

The branch that costs least is dropped first, and each next one is chosen with the ones before it gone: what an option
loses is measured on samples, by running the rest of the network without it. Then every later layer that ends a branch
is solved anew, so that it makes up for what the stream has lost (Veit et al., Residual networks behave like ensembles,
NeurIPS 2016, showed that such nets survive it; the repair is that of Channel Pruning, He et al., ICCV 2017, 3.3).

Lossy; needs samples of real inputs. Refuses branches whose shortcut is not the very tensor that they start from, and
those of which a part is read elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

import onnx_ir as ir

from onnxslim_core.channels.groups import analyse
from onnxslim_core.errors import RecipeError, UnsupportedModel
from onnxslim_core.repair.table import REPAIRS
from onnxslim_core.rewrite import Change, Context, Kind
from onnxslim_core.search.widths import Limits

from ._slimming import Demand, Slimming

__all__ = ["DropBlocks"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DropBlocks:
    """Drop the residual branches that matter least."""

    name: ClassVar[str] = "drop_blocks"
    kind: ClassVar[Kind] = Kind.LOSSY

    count: int = 1
    """How many go."""
    ignored: tuple[str, ...] = ()
    """Globs over nodes; a branch that holds one of them stays."""
    repair: str = "least_squares"
    """How later layers are mended: `least_squares`, `scale`, `variance`, `bias`, `none`."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise RecipeError(f"count of drop_blocks is {self.count}", "a number from 1")
        if self.repair not in (*REPAIRS, "none"):
            raise RecipeError(f"repair of drop_blocks is '{self.repair}'", f"one of {', '.join(REPAIRS)}, none")

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Choose, drop, mend."""
        if not context.samples or not context.samples_are_real:
            reason = "what a block is worth is measured on samples of real inputs: give --data"
            return [Change(self.name, (), "drop blocks", reason=reason, guard="data_given")]
        try:
            channels = analyse(model, context.samples[0])
        except UnsupportedModel as err:
            return [Change(self.name, (), "drop blocks", reason=str(err), guard="sizes_known")]
        demand = Demand(
            name=self.name,
            allocation="macs",
            forms=("gone",),
            criterion="obs",
            limits=Limits(),
            repair=self.repair,
            ignored=self.ignored,
        )
        return Slimming(channels, [], demand, context).drop_one_by_one(self.count)
