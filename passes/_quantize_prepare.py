"""What a float network needs before it is brought onto grids: the opset, and no node between layers that can go."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir

from onnxslim_core import graph as verbs
from onnxslim_core.quant.layout import LINEAR
from onnxslim_core.rewrite import Context

from ._facts import Facts
from ._fold import Fold
from ._merge import deterministic
from ._opset import raise_opset
from .fuse_batchnorm import FuseBatchNorm

__all__ = ["prepare"]

_OPSET = 13
"""Scales per channel begin here."""


def prepare(model: ir.Model, context: Context) -> None:
    """Raise the opset, open weights, fuse BatchNormalization, let convolutions pad themselves, divide by multiplying.

    The answers stay but for rounding, of which an 8-bit step is a thousand times the size.

    Raises:
        UnsupportedModel: if the opset cannot be raised.
    """
    raise_opset(model, _OPSET)
    _open_weights(model)
    FuseBatchNorm().run(model, context)
    for node in list(model.graph):
        if verbs.is_op(node, "Pad"):
            _pad_inside(node)
        elif verbs.is_op(node, "Div"):
            _div_to_mul(model, node)


def _open_weights(model: ir.Model) -> None:
    """Compute weights that are stored in fewer bits, such as int8 behind a Cast and a Mul: they get scales of our own.

    What a small constant would grow into, like a ConstantOfShape, is not computed here either.
    """
    weights = [node.inputs[1] for node in model.graph if verbs.is_op(node, *LINEAR) and len(node.inputs) > 1]
    if all(value is None or value.producer() is None or verbs.array_of(value) is not None for value in weights):
        return
    fold = Fold(verbs.Names(model), Facts(model), verbs.opset_of(model), (deterministic,), sys.maxsize, sys.maxsize)
    fold.walk(model.graph)
    fold.store()


def _div_to_mul(model: ir.Model, node: ir.Node) -> None:
    """Division by one constant number becomes a product, for which there is an 8-bit kernel."""
    divisor = verbs.array_of(node.inputs[1])
    if divisor is None or divisor.dtype != np.float32 or divisor.size != 1 or not divisor.all():
        return
    with np.errstate(over="ignore"):
        factor = np.float32(1) / divisor
    if not np.isfinite(factor).all() or not factor.all():
        return
    names = verbs.Names(model)
    made = verbs.add_constant(model.graph, names, factor.astype(np.float32), f"{node.name}/factor")
    product = verbs.add_node(names, "Mul", [node.inputs[0], made], before=node)
    product.outputs[0].type, product.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    verbs.replace(node.outputs[0], product.outputs[0], names)
    verbs.remove(node)


def _pad_inside(node: ir.Node) -> None:
    """A Pad with zeros along spatial axes becomes the padding of the convolutions that read it, if only such do."""
    pads, value = (verbs.array_of(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    has_value = len(node.inputs) > 2 and node.inputs[2] is not None
    if pads is None or verbs.attribute(node, "mode", "constant") != "constant" or len(node.inputs) > 3:
        return
    if has_value and (value is None or np.any(value)):
        return
    half = len(pads) // 2
    users, is_output = verbs.users_of(node.outputs[0])
    if is_output or not users or (pads < 0).any() or pads[:2].any() or pads[half : half + 2].any():
        return
    if not all(verbs.is_op(user, "Conv") and index == 0 and _pads_itself(user) for user, index in users):
        return
    extra = np.concatenate([pads[2:half], pads[half + 2 :]]).astype(np.int64)
    source = node.inputs[0]
    for user, _ in users:
        own = () if verbs.attribute(user, "auto_pad", "") == "VALID" else verbs.attribute(user, "pads", ())
        own = own or (0,) * len(extra)
        verbs.set_attribute(user, "auto_pad", None)
        verbs.set_attribute(user, "pads", [int(a + b) for a, b in zip(own, extra, strict=True)])
        verbs.replace_input(user, 0, source)
    verbs.remove(node)


def _pads_itself(node: ir.Node) -> bool:
    return str(verbs.attribute(node, "auto_pad", "NOTSET")) in ("NOTSET", "VALID", "")
