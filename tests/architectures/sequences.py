"""Transformers, mixers and recurrent networks, each as small as its topology lets it be, from the papers named."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from tests.architectures.builder import Net
from tests.architectures.widths import (
    CLASSES,
    MIXER,
    POSITIONS,
    SEQUENCE,
    TOKENS,
    decoder_block,
    encoder_block,
    relative_index,
    rotary_tables,
    shift_mask,
    widths,
    window_block,
)
from tests.halved import Axis, Part, Width

__all__ = ["NETS"]


def _tokens(net: Net, size: int) -> tuple[str, str]:
    """Ids [N, T] looked up in a table, and their number T as a vector."""
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.INT64, ["N", "T"]))
    table = net.keep("table", net.draw.weight("table", (TOKENS, size), fan=2))
    length = net.op("Gather", net.op("Shape", "x"), net.ints(1))
    return net.op("Gather", table, "x"), length


def _first(net: Net, table: str, length: str) -> str:
    """The first rows of a table of positions."""
    return net.op("Slice", table, net.ints(0), length, net.ints(0))


def _mlp(net: Net, x: str, name: str, size: int, hidden: Width) -> str:
    return net.linear(net.gelu(net.linear(x, f"{name}.up", size, hidden)), f"{name}.down", hidden, size)


def _fused(net: Net, x: str, name: str, size: int, count: Part, slots: Part) -> str:
    """Query, key and value from one product: [..., (3, heads, slots)].

    Dead slots are zero in the query whatever is silenced, since the key is what reads them; those of the value may be
    dead by the projection that reads it.
    """
    axis = (count, slots)
    parts = []
    for kind in "qkv":
        silent = {"q": ([1], [1]), "k": ([], []), "v": ([1], [])}[kind]
        for part, axes, fan in (("weight", (size, axis), 2 * size), ("bias", (axis,), None)):
            made, read = ([min(a, len(axes) - 1) for a in s] for s in silent)
            values = net.draw.weight(f"{name}.{kind}.{part}", axes, makes=made, reads=read, fan=fan)
            parts.append(values)
    weight = net.keep(f"{name}.qkv", np.concatenate(parts[::2], 1))
    return net.op("Add", net.op("MatMul", x, weight), net.keep(f"{name}.qkv.bias", np.concatenate(parts[1::2], 0)))


def _attend(net: Net, q: str, k: str, v: str, slots: int, extra: str = "") -> str:
    """Softmax(q k^T / sqrt(slots) + extra) v, over [..., T, slots]."""
    scores = net.op("MatMul", net.op("Mul", q, net.scalar(slots**-0.5)), k)
    if extra:
        scores = net.op("Add", scores, extra)
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), v)


def encoder(net: Net) -> None:
    """Transformer encoder, norm first (Vaswani et al. 2017; Xiong et al. 2020), with fused query, key and value.

    Whole heads go in the first block, slots of every head in the second, neurons in both.
    """
    draw, size = net.draw, SEQUENCE
    x, length = _tokens(net, size)
    places = net.keep("places", draw.weight("places", (POSITIONS, size)))
    x = net.op("Add", x, _first(net, places, length))
    for block in range(2):
        widths_of = encoder_block(draw, block)
        name, count, slots = widths_of.name, widths_of.heads, widths_of.slots
        h = _fused(net, net.layernorm(x, f"{name}.norm1", size), name, size, count, slots)
        h = net.transpose(net.reshape(h, 0, 0, 3, count, slots), 2, 0, 3, 1, 4)
        q, k, v = (net.op("Gather", h, net.keep(f"index{i}", np.array(i)), axis=0) for i in range(3))
        h = _attend(net, q, net.transpose(k, 0, 1, 3, 2), v, 8)
        h = net.reshape(net.transpose(h, 0, 2, 1, 3), 0, 0, (count, slots))
        x = net.op("Add", x, net.linear(h, f"{name}.out", (count, slots), size))
        h = net.layernorm(x, f"{name}.norm2", size)
        x = net.op("Add", x, _mlp(net, h, name, size, widths_of.hidden))
    x = net.op("ReduceMean", net.layernorm(x, "norm", size), axes=[1], keepdims=0)
    net.answer(net.linear(x, "head", size, CLASSES), shape=["N", 10])


def _rmsnorm(net: Net, x: str, name: str, size: int) -> str:
    """RMSNorm (Zhang and Sennrich 2019) in pieces, as exporters write it."""
    mean = net.op("ReduceMean", net.op("Pow", x, net.scalar(2)), axes=[-1], keepdims=1)
    scaled = net.op("Div", x, net.op("Sqrt", net.op("Add", mean, net.scalar(1e-5))))
    return net.op("Mul", scaled, net.keep(f"{name}.scale", net.draw.weight(f"{name}.scale", (size,), around=1.0)))


def _rotary(net: Net, x: str, length: str, half: Part) -> str:
    """Rotary positions (Su et al. 2021) on [N, heads, T, (2, half)]."""
    tables = [
        _first(net, net.keep(name, net.draw.table(values, (POSITIONS, (2, half)))), length)
        for name, values in rotary_tables(half).items()
    ]
    at = net.draw.size(half)
    left = net.op("Slice", x, net.ints(0), net.ints(at), net.ints(3))
    right = net.op("Slice", x, net.ints(at), net.ints(2**60), net.ints(3))
    turned = net.op("Concat", net.op("Neg", right), left, axis=-1)
    return net.op("Add", net.op("Mul", x, tables[0]), net.op("Mul", turned, tables[1]))


def decoder(net: Net) -> None:
    """Transformer decoder: grouped-query attention (Ainslie et al. 2023), rotary positions, RMSNorm, SwiGLU (Shazeer 2020).

    Keys with their groups of queries go in the first block, slots in the second (those of queries and keys in pairs,
    those of values apart), queries of every group in the third. The table of tokens is the last layer as well.
    """
    draw, size = net.draw, SEQUENCE
    x, length = _tokens(net, size)
    square = net.op("Concat", length, length, axis=0)
    low = helper.make_tensor("low", TensorProto.FLOAT, [1], [-1e4])
    mask = net.op("Trilu", net.op("ConstantOfShape", square, value=low), net.keep("one", np.array(1)), upper=1)
    for block in range(3):
        widths_of = decoder_block(draw, block)
        name, keys, group = widths_of.name, widths_of.keys, widths_of.group
        half, value, hidden = widths_of.half, widths_of.value, widths_of.hidden
        h = _rmsnorm(net, x, f"{name}.norm1", size)
        heads: Axis = (keys, group)
        q = _projected(net, h, f"{name}.q", size, heads, (2, half), [1], [1]) if block == 1 else _projected(
            net, h, f"{name}.q", size, heads, (2, half), [], [])  # fmt: skip
        k = _projected(net, h, f"{name}.k", size, keys, (2, half), [], [])
        v = _projected(net, h, f"{name}.v", size, keys, value, [1], [])
        q, k = _rotary(net, q, length, half), _rotary(net, k, length, half)
        k, v = (_repeated(net, t, group, heads, slots) for t, slots in ((k, (2, half)), (v, value)))
        h = _attend(net, q, net.transpose(k, 0, 1, 3, 2), v, 8, mask)
        h = net.reshape(net.transpose(h, 0, 2, 1, 3), 0, 0, (keys, group, value))
        made = [0] if block == 2 else []  # a query without values of its own is dead by its projection alone
        w = draw.weight(f"{name}.o", ((keys, group, value), size), makes=made, reads=[0], fan=2 * size)
        x = net.op("Add", x, net.op("MatMul", h, net.keep(f"{name}.o", w)))
        h = _rmsnorm(net, x, f"{name}.norm2", size)
        gate = net.silu(net.linear(h, f"{name}.gate", size, hidden, bias=False, makes=False))
        h = net.op("Mul", gate, net.linear(h, f"{name}.up", size, hidden, bias=False))
        x = net.op("Add", x, net.linear(h, f"{name}.down", hidden, size, bias=False))
    x = _rmsnorm(net, x, "norm", size)
    net.answer(net.op("MatMul", x, net.transpose("table", 1, 0)), shape=["N", "T", TOKENS])


def _projected(
    net: Net, x: str, name: str, size: int, heads: Axis, slots: Axis, makes: list[int], reads: list[int]
) -> str:
    """[N, heads, T, slots] of x [N, T, size]."""
    axis: tuple[Part, ...] = tuple(part for a in (heads, slots) for part in (a if isinstance(a, tuple) else (a,)))
    w = net.draw.weight(name, (size, axis), makes=makes, reads=reads, fan=2 * size)
    y = net.reshape(net.op("MatMul", x, net.keep(name, w)), 0, 0, heads, slots)
    return net.transpose(y, 0, 2, 1, 3)


def _repeated(net: Net, x: str, group: Part, heads: Axis, slots: Axis) -> str:
    """Keys or values [N, keys, T, slots] for every query of their group."""
    y = net.op("Unsqueeze", x, net.ints(2))
    y = net.op("Expand", y, net.ints(1, 1, net.draw.size(group), 1, 1))
    return net.reshape(y, 0, heads, -1, slots)


def window(net: Net) -> None:
    """Windows that shift (Swin, Liu et al. 2021): roll, partition, relative positions, a mask, merging of patches.

    Whole heads go in the first block and slots in the second, neurons in all.
    """
    draw, size, side, w = net.draw, 16, 8, 4
    x = net.conv(net.image(size=(32, 32)), "patches", size, 3, (4, 4), pad=False, strides=[4, 4])
    x = net.transpose(x, 0, 2, 3, 1)
    for block in range(3):
        shift = 2 if block == 1 else 0
        if block == 2:
            parts = [
                net.op("Slice", x, net.ints(a, b), net.ints(side, side), net.ints(1, 2), net.ints(2, 2))
                for b in (0, 1)
                for a in (0, 1)
            ]
            x = net.layernorm(net.op("Concat", *parts, axis=-1), "merge.norm", 4 * size)
            x, size, side = net.linear(x, "merge", 4 * size, 24, bias=False), 24, 4
        widths_of = window_block(draw, block, size)
        name, count, slots = widths_of.name, widths_of.heads, widths_of.slots
        h = net.layernorm(x, f"{name}.norm1", size)
        h = _rolled(net, h, shift)
        h = net.transpose(net.reshape(h, -1, side // w, w, side // w, w, size), 0, 1, 3, 2, 4, 5)
        h = _fused(net, net.reshape(h, -1, w * w, size), name, size, count, slots)
        h = net.transpose(net.reshape(h, -1, w * w, 3, count, slots), 2, 0, 3, 1, 4)
        q, k, v = (net.op("Squeeze", t, net.ints(0)) for t in net.ops(3, "Split", h, net.ints(1, 1, 1), axis=0))
        scores = net.op("MatMul", net.op("Mul", q, net.scalar(0.4)), net.transpose(k, 0, 1, 3, 2))
        scores = net.op("Add", scores, _relative(net, name, count, w))
        if shift:
            mask = net.keep("mask", shift_mask(side, w, shift)[None, :, None])
            scores = net.op("Add", net.reshape(scores, -1, (side // w) ** 2, count, w * w, w * w), mask)
            scores = net.reshape(scores, -1, count, w * w, w * w)
        h = net.transpose(net.op("MatMul", net.op("Softmax", scores, axis=-1), v), 0, 2, 1, 3)
        h = net.linear(net.reshape(h, -1, w * w, (count, slots)), f"{name}.out", (count, slots), size)
        h = net.transpose(net.reshape(h, -1, side // w, side // w, w, w, size), 0, 1, 3, 2, 4, 5)
        x = net.op("Add", x, _rolled(net, net.reshape(h, -1, side, side, size), -shift))
        h = net.layernorm(x, f"{name}.norm2", size)
        x = net.op("Add", x, _mlp(net, h, name, size, widths_of.hidden))
    x = net.op("ReduceMean", net.layernorm(x, "norm", size), axes=[1, 2], keepdims=0)
    net.answer(net.linear(x, "head", size, CLASSES), shape=["N", 10])


def _rolled(net: Net, x: str, shift: int) -> str:
    """Roll rows and columns of [N, H, W, C] by -shift, as exporters write it."""
    for axis in (1, 2) if shift else ():
        front = net.op("Slice", x, net.ints(shift), net.ints(2**60), net.ints(axis))
        back = net.op("Slice", x, net.ints(0), net.ints(shift), net.ints(axis))
        x = net.op("Concat", front, back, axis=axis)
    return x


def _relative(net: Net, name: str, count: Axis, w: int) -> str:
    """A bias per head and pair of places, looked up by their distance: [1, heads, w*w, w*w]."""
    table = net.keep(f"{name}.table", net.draw.weight(f"{name}.table", ((2 * w - 1) ** 2, count)))
    index = net.keep("apart", relative_index(w))
    bias = net.reshape(net.op("Gather", table, index), w * w, w * w, count)
    return net.op("Unsqueeze", net.transpose(bias, 2, 0, 1), net.ints(0))


def mixer(net: Net) -> None:
    """MLP-Mixer (Tolstikhin et al. 2021): neurons over tokens and neurons over channels go."""
    hidden, (size, tokens) = widths(net.draw, "mixer"), MIXER
    x = net.conv(net.image(size=(24, 24)), "patches", size, 3, (4, 4), pad=False, strides=[4, 4])
    x = net.transpose(net.reshape(x, 0, size, -1), 0, 2, 1)
    for block in range(2):
        name = f"block{block}"
        h = net.transpose(net.layernorm(x, f"{name}.norm1", size), 0, 2, 1)
        h = _mlp(net, h, f"{name}.tokens", tokens, hidden[f"{name}.tokens"])
        x = net.op("Add", x, net.transpose(h, 0, 2, 1))
        h = net.layernorm(x, f"{name}.norm2", size)
        x = net.op("Add", x, _mlp(net, h, f"{name}.channels", size, hidden[f"{name}.channels"]))
    x = net.op("ReduceMean", net.layernorm(x, "norm", size), axes=[1], keepdims=0)
    net.answer(net.linear(x, "head", size, CLASSES), shape=["N", 10])


def wavenet(net: Net) -> None:
    """WaveNet (van den Oord et al. 2016): causal dilated convolutions, Tanh times Sigmoid, residual and skip sums."""
    draw, skips = net.draw, ""
    every = widths(draw, "wavenet")
    trunk, skip, last = every["trunk"], every["skip"], every["last"]
    x = net.conv(net.image(channels=2, size=("T",)), "front", trunk, 2, (1,), pad=False)
    for layer in range(4):
        name, dilation = f"layer{layer}", 2**layer
        gates = every[name]
        parts = [
            draw.weight(f"{name}.{kind}.{part}", axes, makes=[0] if kind == "tanh" else [], reads=[1][: len(axes) - 1],
                        fan=48 if len(axes) > 1 else None)
            for part, axes in (("weight", (gates, trunk, 2)), ("bias", (gates,)))
            for kind in ("tanh", "sigmoid")
        ]  # fmt: skip
        h = net.op("Pad", x, net.ints(0, 0, dilation, 0, 0, 0))
        weight, bias = (net.keep(f"{name}.{n}", np.concatenate(parts[i : i + 2], 0)) for i, n in ((0, "w"), (2, "b")))
        h = net.op("Conv", h, weight, bias, dilations=[dilation])
        size = draw.size(gates)
        filtered, gate = net.ops(2, "Split", h, net.ints(size, size), axis=1)
        h = net.op("Mul", net.op("Tanh", filtered), net.op("Sigmoid", gate))
        to_skip = net.conv(h, f"{name}.skip", skip, gates, (1,), pad=False)
        skips = net.op("Add", skips, to_skip) if skips else to_skip
        x = net.op("Add", x, net.conv(h, f"{name}.residual", trunk, gates, (1,), pad=False))
    h = net.op("Relu", net.conv(net.op("Relu", skips), "last", last, skip, (1,), pad=False))
    net.answer(net.conv(h, "out", 16, last, (1,), pad=False), shape=["N", 16, "T"])


def gru(net: Net) -> None:
    """Recurrent layers (GRU, Cho et al. 2014), the first in both directions; hidden units go, in both alike."""
    net.inputs.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", 14]))
    first, second = widths(net.draw, "gru").values()
    h = _gru(net, net.transpose("x", 1, 0, 2), "first", 2, 14, first)[0]
    h = net.reshape(net.transpose(h, 0, 2, 1, 3), 0, 0, (2, first))
    last = net.op("Squeeze", _gru(net, h, "second", 1, (2, first), second)[1], net.ints(0))
    net.answer(net.linear(last, "head", second, CLASSES), shape=["N", 10])


def _gru(net: Net, x: str, name: str, directions: int, size: Axis, hidden: Width) -> list[str]:
    """A GRU as PyTorch counts it (linear_before_reset). A unit is dead where its candidate is: h' = z h then."""

    def gates(kind: str, *rest: Axis) -> np.ndarray:
        parts = []
        for gate in ("z", "r", "h"):
            axes = (directions, hidden, *rest)
            makes, reads = [1] if gate == "h" else [], [2] if rest else []
            fan = 2 * net.draw._full(rest[0]) if rest else None
            parts.append(net.draw.weight(f"{name}.{kind}.{gate}", axes, makes=makes, reads=reads, fan=fan))
        return np.concatenate(parts, 1)

    w, r = (net.keep(f"{name}.{kind}", gates(kind, axis)) for kind, axis in (("w", size), ("r", hidden)))
    b = net.keep(f"{name}.b", np.concatenate([gates("bw"), gates("br")], 1))
    direction = "bidirectional" if directions == 2 else "forward"
    units = net.draw.size(hidden)
    return net.ops(2, "GRU", x, w, r, b, hidden_size=units, direction=direction, linear_before_reset=1)


NETS = {
    "encoder": encoder,
    "decoder": decoder,
    "window": window,
    "mixer": mixer,
    "wavenet": wavenet,
    "gru": gru,
}
"""By name."""
