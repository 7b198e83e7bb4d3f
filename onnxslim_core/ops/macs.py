"""Multiply-accumulates of one node, from its shapes.

Counted are the operators whose work is a sum of products: convolutions, matrix products, recurrent cells, attention.
One MAC is one product that is added. Biases, activations, normalization and pooling count 0, as is the custom. Nodes
within the bodies of If, Loop and Scan are not counted, since how often a body runs is not in the shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnxslim_core.graph import STANDARD, attribute

__all__ = ["macs"]

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]


def macs(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    """Multiply-accumulates of one run of a node.

    Args:
        node: Of the standard domain or of onnxruntime's own (`com.microsoft`); others count 0.
        shapes_in: The concrete shape of each input; None where it is absent or unknown.
        shapes_out: The same of the outputs.

    Returns:
        0 for operators that are not counted, and where a shape that is needed is unknown.
    """
    if node.domain not in (*STANDARD, "com.microsoft"):
        return 0
    rule = _RULES.get(node.op_type)
    return 0 if rule is None else rule(node, shapes_in, shapes_out)


def _at(shapes: Shapes, index: int) -> Shape | None:
    return shapes[index] if index < len(shapes) else None


def _conv(weight: int) -> Callable[[ir.Node, Shapes, Shapes], int]:
    def rule(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
        w, y = _at(shapes_in, weight), _at(shapes_out, 0)
        # W is [C_out, C_in/group, ...]: each output element sums over all but the first axis
        return 0 if w is None or y is None else math.prod(y) * math.prod(w[1:])

    return rule


def _conv_transpose(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    x, w = _at(shapes_in, 0), _at(shapes_in, 1)
    # W is [C_in, C_out/group, ...]: each input element is spread over all but the first axis
    return 0 if x is None or w is None else math.prod(x) * math.prod(w[1:])


def _matmul(left: int) -> Callable[[ir.Node, Shapes, Shapes], int]:
    def rule(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
        a, y = _at(shapes_in, left), _at(shapes_out, 0)
        if a is None or y is None or not a:
            return 0
        # FusedMatMul may turn its left operand
        k = a[-2] if attribute(node, "transA", 0) and len(a) > 1 else a[-1]
        return math.prod(y) * k

    return rule


def _matmul_nbits(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    y = _at(shapes_out, 0)
    return 0 if y is None else math.prod(y) * int(attribute(node, "K", 0))


def _gemm(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    a, y = _at(shapes_in, 0), _at(shapes_out, 0)
    if a is None or y is None or len(a) != 2:
        return 0
    return math.prod(y) * a[0 if attribute(node, "transA", 0) else 1]


def _einsum(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    """The product over all letters: what the plain loop does, whatever order the runtime picks."""
    terms = str(attribute(node, "equation", "")).replace(" ", "").split("->")[0].split(",")
    if len(terms) < 2 or len(terms) > len(shapes_in):
        return 0
    sizes: dict[str, int] = {}
    ellipsis: Shape = ()
    for term, shape in zip(terms, shapes_in, strict=False):
        if shape is None:
            return 0
        head, dots, tail = term.partition("...")
        wide = shape[len(head) : len(shape) - len(tail)] if dots else ()
        ellipsis = wide if math.prod(wide) > math.prod(ellipsis) else ellipsis
        letters = list(zip(head, shape, strict=False))
        letters += list(zip(reversed(tail), reversed(shape), strict=False)) if dots else []
        for letter, size in letters:
            sizes[letter] = max(sizes.get(letter, 1), size)
    return math.prod(sizes.values()) * math.prod(ellipsis) * (len(terms) - 1)


def _recurrent(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    x, w, r = _at(shapes_in, 0), _at(shapes_in, 1), _at(shapes_in, 2)
    # X is [T, B, I] (layout=1: [B, T, I]); W [directions, gates*H, I]; R [directions, gates*H, H]
    return 0 if x is None or w is None or r is None else x[0] * x[1] * (math.prod(w) + math.prod(r))


def _attention(node: ir.Node, shapes_in: Shapes, shapes_out: Shapes) -> int:
    """Scores and weighted sum: [.., L, S] times the width of a head, twice."""
    if node.domain not in STANDARD:
        return _packed_attention(shapes_in) if node.op_type == "Attention" else 0
    q, k, v = _at(shapes_in, 0), _at(shapes_in, 1), _at(shapes_in, 2)
    past = _at(shapes_in, 4)
    if q is None or k is None or v is None:
        return 0
    seen = past[-2] if past else 0
    if len(q) == 4:  # [B, heads, L, width]
        return math.prod(q[:3]) * (k[2] + seen) * (q[3] + v[3])
    heads, kv_heads = int(attribute(node, "q_num_heads", 1)), int(attribute(node, "kv_num_heads", 1))
    return q[0] * q[1] * (k[1] + seen) * (q[2] + heads * v[2] // max(kv_heads, 1))


def _packed_attention(shapes_in: Shapes) -> int:
    """com.microsoft Attention: x [B, L, I] times W [I, 3H], then scores and sum of width H."""
    x, w = _at(shapes_in, 0), _at(shapes_in, 1)
    if x is None or w is None:
        return 0
    return x[0] * x[1] * math.prod(w) + 2 * x[0] * x[1] * x[1] * (w[1] // 3)


_RULES: dict[str, Callable[[ir.Node, Shapes, Shapes], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "DeformConv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "FusedGemm": _gemm,
    "QGemm": _gemm,
    "MatMul": _matmul(0),
    "MatMulInteger": _matmul(0),
    "MatMulIntegerToFloat": _matmul(0),
    "DynamicQuantizeMatMul": _matmul(0),
    "FusedMatMul": _matmul(0),
    "QLinearMatMul": _matmul(0),
    "MatMulNBits": _matmul_nbits,
    "Einsum": _einsum,
    "LSTM": _recurrent,
    "DynamicQuantizeLSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
    "Attention": _attention,
}
