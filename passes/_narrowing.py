"""The last step of a plan with int8: the layers it chose are brought to 8 bits as `quantize` does it, and looked at.

What the plan cut and mended is a float model; its layers are quantized with ranges, repair and check of `quantize`
(`Search`), which may put a layer back into float where the answers on samples kept aside say so.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxslim_core.channels.twin import twin_of
from onnxslim_core.errors import MeasureError, UnsupportedModel
from onnxslim_core.graph import label_of
from onnxslim_core.quant.layout import linear_nodes
from onnxslim_core.rewrite import Change, weight_bytes
from onnxslim_core.search.plan import Row

from ._mending import Mended, carry_out
from ._precision import Precision, in_int8, stays
from ._quantize_prepare import prepare
from ._quantize_static import Search, Wanted
from ._rows import Options

__all__ = ["Narrowed", "floats_of", "has_int8", "int8_loss", "narrowed", "rounded"]

Choice = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Narrowed:
    """A plan carried out on a copy, in int8.

    Attributes:
        model: The copy.
        changes: What was done to it.
        floats: Layers that were to be int8 and had to stay in float.
    """

    model: ir.Model
    changes: list[Change]
    floats: set[str]


def chosen_of(options: Options, choice: Choice) -> list[Precision]:
    """The layers that a choice has in int8."""
    rows: list[Row] = [unit.rows[row] for unit, row in zip(options.units, choice, strict=True)]
    return [row.payload for row in rows if isinstance(row.payload, Precision)]


def has_int8(options: Options, choice: Choice) -> bool:
    """Whether any layer of a choice is int8."""
    return bool(chosen_of(options, choice))


def int8_loss(options: Options, choice: Choice) -> float:
    """What its int8 layers are expected to lose, each measured alone."""
    rows = [unit.rows[row] for unit, row in zip(options.units, choice, strict=True)]
    return sum(row.loss for row in rows if isinstance(row.payload, Precision))


def floats_of(options: Options, choice: Choice) -> set[str]:
    """Names of all nodes that stay in float."""
    return {str(node.name) for node in options.model.graph} - {each.name for each in chosen_of(options, choice)}


def rounded(options: Options, choice: Choice, model: ir.Model) -> ir.Model | None:
    """A cut copy with the layers of the choice in int8, nothing mended: for its time."""
    if not has_int8(options, choice):
        return model
    return in_int8(model, floats_of(options, choice), options.fit[:1], options.context)


def narrowed(options: Options, best: Mended, shown: dict[str, Any], min_cosine: float) -> Narrowed | str:
    """A plan carried out on a copy and brought to 8 bits; why not, where the answers do not allow it.

    Args:
        options: The units.
        best: The plan with the weights that were solved for.
        shown: For the report.
        min_cosine: What the int8 network has to reach beside the float one, part by part.
    """
    work = copy.copy(options)
    work.model = options.model.clone()
    work.channels = twin_of(options.channels, work.model)
    done = carry_out(work, best, shown)
    float_model, floats = work.model, floats_of(options, best.choice)
    prepared = float_model.clone()
    try:
        prepare(prepared, options.context)
        nodes = [node for node in linear_nodes(prepared) if not stays(node, floats)]
        wanted = Wanted("static", min_cosine, None, "auto", 99.99, "auto", nodes)
        search = Search(float_model, prepared, wanted, options.context)
        found, kept = search.run()
    except (MeasureError, UnsupportedModel) as err:
        return str(err)
    if found is None:
        return f"no layer can be int8 with a cosine of {min_cosine:g} in every part"
    back = {str(node.name) for node in nodes} - {str(node.name) for node in kept}
    saved = weight_bytes(float_model) - weight_bytes(found)
    action = f"{len(kept)} of {len(linear_nodes(prepared))} layers in int8"
    details = {**search.details, "measured_loss": options.lost(found)}
    where = tuple(label_of(node) for node in kept)
    changes = [done, Change(options.demand.name, where, action, bytes_saved=saved, details=details)]
    return Narrowed(found, changes, back & {each.name for each in chosen_of(options, best.choice)})
