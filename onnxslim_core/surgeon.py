"""The border with onnx-graphsurgeon: its graphs in and out, through protos.

That library drops metadata, doc strings, quantization annotations and more without a word, and crashes on some types.
What it would drop is said once per graph in a warning; what it would crash on, or silently change, is refused by name.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxslim_core import _carry

__all__ = ["from_ir", "to_ir"]


def to_ir(graph: object) -> ir.Model:
    """The onnx_ir model of an `onnx_graphsurgeon.Graph`, which is not changed."""
    import onnx_graphsurgeon as gs

    return _carry.from_proto(gs.export_onnx(graph))


def from_ir(model: ir.Model) -> object:
    """An `onnx_graphsurgeon.Graph` of a model, which is not changed."""
    import onnx_graphsurgeon as gs

    return gs.import_onnx(_carry.write(model))
