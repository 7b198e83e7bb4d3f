"""Transformers and recurrent networks in PyTorch; what goes is said in `tests/architectures/sequences.py`."""

from __future__ import annotations

import torch
from _architectures_torch import Net
from torch.nn import functional

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
from tests.halved import Part


def _fused(net: Net, x: torch.Tensor, name: str, size: int, count: Part, slots: Part) -> tuple[torch.Tensor, ...]:
    """Query, key and value [N, heads, T, slots] from one product."""
    axis = (count, slots)
    h = net.linear(x, name, size, 0, parts=[(axis, True, True), (axis, False, False), (axis, True, False)])
    h = h.view(-1, x.shape[1], 3, net.size(count), net.size(slots)).permute(2, 0, 3, 1, 4)
    return h[0], h[1], h[2]


def encoder(net: Net, x: torch.Tensor) -> torch.Tensor:
    size, length = SEQUENCE, x.shape[1]
    x = net.embedding(x, "table", TOKENS, size) + net.param("places", (POSITIONS, size))[:length]
    for block in range(2):
        widths_of = encoder_block(net.draw, block)
        name, count, slots = widths_of.name, widths_of.heads, widths_of.slots
        q, k, v = _fused(net, net.norm(x, f"{name}.norm1", size), name, size, count, slots)
        h = functional.scaled_dot_product_attention(q, k, v, scale=8**-0.5)
        h = h.transpose(1, 2).reshape(-1, length, net.size((count, slots)))
        x = x + net.linear(h, f"{name}.out", (count, slots), size)
        h = net.norm(x, f"{name}.norm2", size)
        x = x + net.mlp(h, f"{name}.mlp", size, widths_of.hidden)
    return net.linear(net.norm(x, "norm", size).mean(1), "head", size, CLASSES)


def _rmsnorm(net: Net, x: torch.Tensor, name: str, size: int) -> torch.Tensor:
    scale = net.param(f"{name}.scale", (size,), around=1.0)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * scale


def _rotary(net: Net, x: torch.Tensor, half: Part) -> torch.Tensor:
    cos, sin = (net.table(name, values, (POSITIONS, (2, half))) for name, values in rotary_tables(half).items())
    length, (left, right) = x.shape[2], x.chunk(2, -1)
    return x * cos[:length] + torch.cat([-right, left], -1) * sin[:length]


def decoder(net: Net, x: torch.Tensor) -> torch.Tensor:
    size, length = SEQUENCE, x.shape[1]
    x = net.embedding(x, "table", TOKENS, size)
    mask = torch.full((length, length), -1e4).triu(1)
    for block in range(3):
        widths_of = decoder_block(net.draw, block)
        name, keys, group = widths_of.name, widths_of.keys, widths_of.group
        half, value, hidden = widths_of.half, widths_of.value, widths_of.hidden
        h = _rmsnorm(net, x, f"{name}.norm1", size)
        paired = block == 1
        queries = [((keys, group, 2, half), paired, paired)]
        q = net.linear(h, f"{name}.q", size, 0, parts=queries, bias=False)
        k = net.linear(h, f"{name}.k", size, (keys, 2, half), bias=False, makes=False)
        v = net.linear(h, f"{name}.v", size, (keys, value), bias=False)
        heads, n = net.size((keys, group)), net.size(keys)
        q = _rotary(net, q.view(-1, length, heads, net.size((2, half))).transpose(1, 2), half)
        k = _rotary(net, k.view(-1, length, n, net.size((2, half))).transpose(1, 2), half)
        v = v.view(-1, length, n, net.size(value)).transpose(1, 2)
        k, v = (
            t[:, :, None].expand(-1, n, net.size(group), length, t.shape[-1]).reshape(-1, heads, length, t.shape[-1])
            for t in (k, v)
        )
        h = ((q * 8**-0.5) @ k.transpose(2, 3) + mask).softmax(-1) @ v
        out = (keys, group, value)
        h = h.transpose(1, 2).reshape(-1, length, net.size(out))
        weight = net.param(f"{name}.o", (out, size), makes=[0] if block == 2 else [], reads=[0], fan=2 * size)
        x = x + h @ weight
        h = _rmsnorm(net, x, f"{name}.norm2", size)
        gate = functional.silu(net.linear(h, f"{name}.gate", size, hidden, bias=False, makes=False))
        h = gate * net.linear(h, f"{name}.up", size, hidden, bias=False)
        x = x + net.linear(h, f"{name}.down", hidden, size, bias=False)
    return _rmsnorm(net, x, "norm", size) @ net.layers["table"].weight.T


def window(net: Net, x: torch.Tensor) -> torch.Tensor:
    size, side, w = 16, 8, 4
    x = net.conv(x, "patches", size, 3, 4, stride=4, padding=0).permute(0, 2, 3, 1)
    for block in range(3):
        shift = 2 if block == 1 else 0
        if block == 2:
            x = torch.cat([x[:, a::2, b::2] for b in (0, 1) for a in (0, 1)], -1)
            x = net.linear(net.norm(x, "merge.norm", 4 * size), "merge", 4 * size, 24, bias=False)
            size, side = 24, 4
        widths_of = window_block(net.draw, block, size)
        name, count, slots = widths_of.name, widths_of.heads, widths_of.slots
        h = net.norm(x, f"{name}.norm1", size)
        h = torch.roll(h, (-shift, -shift), (1, 2)) if shift else h
        h = h.view(-1, side // w, w, side // w, w, size).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, size)
        q, k, v = _fused(net, h, name, size, count, slots)
        scores = (q * 0.4) @ k.transpose(2, 3)
        bias = net.param(f"{name}.table", ((2 * w - 1) ** 2, count))[torch.from_numpy(relative_index(w))]
        scores = scores + bias.view(w * w, w * w, -1).permute(2, 0, 1)[None]
        heads = net.size(count)
        if shift:
            windows = (side // w) ** 2
            mask = torch.from_numpy(shift_mask(side, w, shift))[None, :, None]
            scores = (scores.view(-1, windows, heads, w * w, w * w) + mask).view(-1, heads, w * w, w * w)
        h = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, net.size((count, slots)))
        h = net.linear(h, f"{name}.out", (count, slots), size)
        h = h.view(-1, side // w, side // w, w, w, size).permute(0, 1, 3, 2, 4, 5).reshape(-1, side, side, size)
        x = x + (torch.roll(h, (shift, shift), (1, 2)) if shift else h)
        h = net.norm(x, f"{name}.norm2", size)
        x = x + net.mlp(h, f"{name}.mlp", size, widths_of.hidden)
    return net.linear(net.norm(x, "norm", size).mean((1, 2)), "head", size, CLASSES)


def mixer(net: Net, x: torch.Tensor) -> torch.Tensor:
    hidden, (size, tokens) = widths(net.draw, "mixer"), MIXER
    x = net.conv(x, "patches", size, 3, 4, stride=4, padding=0).flatten(2).transpose(1, 2)
    for block in range(2):
        name = f"block{block}"
        h = net.norm(x, f"{name}.norm1", size).transpose(1, 2)
        x = x + net.mlp(h, f"{name}.t", tokens, hidden[f"{name}.tokens"]).transpose(1, 2)
        h = net.norm(x, f"{name}.norm2", size)
        x = x + net.mlp(h, f"{name}.c", size, hidden[f"{name}.channels"])
    return net.linear(net.norm(x, "norm", size).mean(1), "head", size, CLASSES)


def wavenet(net: Net, x: torch.Tensor) -> torch.Tensor:
    every = widths(net.draw, "wavenet")
    trunk, skip, last = every["trunk"], every["skip"], every["last"]
    x, skips = net.conv(x, "front", trunk, 2, 1), None
    for layer in range(4):
        name, gates = f"layer{layer}", every[f"layer{layer}"]
        h = functional.pad(x, (2**layer, 0))
        h = net.conv(h, name, 0, trunk, 2, padding=0, dilation=2**layer, parts=[(gates, True), (gates, False)])
        filtered, gate = h.chunk(2, 1)
        h = torch.tanh(filtered) * torch.sigmoid(gate)
        to_skip = net.conv(h, f"{name}.skip", skip, gates, 1)
        skips = to_skip if skips is None else skips + to_skip
        x = x + net.conv(h, f"{name}.residual", trunk, gates, 1)
    h = functional.relu(net.conv(functional.relu(skips), "last", last, skip, 1))
    return net.conv(h, "out", 16, last, 1)


def gru(net: Net, x: torch.Tensor) -> torch.Tensor:
    first, second = widths(net.draw, "gru").values()
    h, _ = net.gru(x, "first", 14, first, both=True)
    _, last = net.gru(h, "second", (2, first), second, both=False)
    return net.linear(last[-1], "head", second, CLASSES)


NETS = {
    "encoder": (encoder, [(9,)]),
    "decoder": (decoder, [(9,)]),
    "window": (window, [(3, 32, 32)]),
    "mixer": (mixer, [(3, 24, 24)]),
    "wavenet": (wavenet, [(2, 40)]),
    "gru": (gru, [(9, 14)]),
}
"""By name: the network and the shapes of its inputs without the batch; one axis alone is a vector of tokens."""
