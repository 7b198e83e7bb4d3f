"""A newer opset where the operators that a pass writes need one."""

from __future__ import annotations

import onnx_ir as ir
from onnx import version_converter

from onnxslim_core.errors import SlimError, UnsupportedModel
from onnxslim_core.graph import all_nodes, opset_of
from onnxslim_core.model import load, wrap

__all__ = ["raise_opset"]


def raise_opset(model: ir.Model, version: int) -> None:
    """Bring a model to an opset of the standard domain, with onnx's own converter; older ones only.

    Inputs and outputs go on declaring what they did, although the converter infers sizes.

    Raises:
        UnsupportedModel: if the converter cannot, or if what it made has other inputs, outputs or operators of ours.
    """
    before = opset_of(model)
    if before >= version:
        return
    if model.functions:
        raise UnsupportedModel(f"opset {before} is below {version}, and functions cannot be converted")
    ports = [*model.graph.inputs, *model.graph.outputs]
    foreign = sum(node.domain != "" for node in all_nodes(model.graph))
    try:
        made = load(version_converter.convert_version(wrap(model).to_proto(), version)).ir
    except (RuntimeError, ValueError, SlimError) as err:
        text = " ".join(str(err).split())[:200]
        raise UnsupportedModel(f"opset {before} cannot be converted to {version}: {text}") from err
    now = [*made.graph.inputs, *made.graph.outputs]
    same = [value.name for value in now] == [value.name for value in ports]
    if not same or sum(node.domain != "" for node in all_nodes(made.graph)) != foreign:
        raise UnsupportedModel(f"opset {before} converted to {version} is another model")
    for new, old in zip(now, ports, strict=True):
        new.type, new.shape, new.doc_string = old.type, old.shape, old.doc_string
    made.graph.meta.update(model.graph.meta)
    made.graph.metadata_props.update(model.graph.metadata_props)
    model.graph = made.graph
    model.ir_version = max(model.ir_version or 0, made.ir_version or 0)
