"""Convolutional architectures in PyTorch; what each has and what goes is said in `tests/architectures/images.py`."""

from __future__ import annotations

import torch
from _architectures_torch import Net
from torch.nn import functional

relu, silu = functional.relu, functional.silu


def convnext(net: Net, x: torch.Tensor) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str, size: int) -> torch.Tensor:
        return net.norm(x.permute(0, 2, 3, 1), name, size).permute(0, 3, 1, 2)

    size = 12
    x = norm(net.conv(x, "stem", size, 3, 4, stride=4, padding=0), "stem.norm", size)
    for stage, width in enumerate((12, 20)):
        if stage:
            x = net.conv(norm(x, "down.norm", size), "down", width, size, 2, stride=2, padding=0)
        size = width
        for block in range(2):
            name = f"stage{stage}.{block}"
            h = net.conv(x, f"{name}.dw", size, 1, 7, groups=size).permute(0, 2, 3, 1)
            h = net.mlp(net.norm(h, f"{name}.norm", size), name, size, net.width(name, 4 * size))
            x = x + (h * net.param(f"{name}.gamma", (size,), around=0.5)).permute(0, 3, 1, 2)
    return net.linear(net.norm(x.mean((2, 3)), "norm", size), "head", size, 10)


def regnet_se(net: Net, x: torch.Tensor) -> torch.Tensor:
    trunk = net.width("stem", 16)
    x = relu(net.conv_bn(x, "stem", trunk, 3, stride=2))
    for stage, (size, groups) in enumerate(((24, 4), (48, 6))):
        wider = net.width(f"trunk{stage}", size)
        for block in range(2):
            name, per = f"stage{stage}.{block}", size // groups
            count = groups if block else net.width(f"{name}.groups", groups)
            slots = net.width(f"{name}.slots", per) if block else per
            middle, squeezed, stride = (count, slots), net.width(f"{name}.squeezed", 8), 2 - block
            h = relu(net.conv_bn(x, f"{name}.a", middle, trunk, 1))
            h = relu(net.conv_bn(h, f"{name}.b", middle, slots, groups=net.size(count), stride=stride))
            s = relu(net.conv(functional.adaptive_avg_pool2d(h, 1), f"{name}.s1", squeezed, middle, 1))
            h = h * torch.sigmoid(net.conv(s, f"{name}.s2", middle, squeezed, 1, makes=False))
            short = x if block else net.conv_bn(x, f"{name}.short", wider, trunk, 1, stride=2)
            x, trunk = relu(net.conv_bn(h, f"{name}.c", wider, middle, 1) + short), wider
    return net.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1), "head", trunk, 10)


def pixel_shuffle(net: Net, x: torch.Tensor) -> torch.Tensor:
    trunk, middle, last = net.width("trunk", 20), net.width("middle", 12), net.width("last", 16)
    h = head = net.conv(x, "head", trunk, 3)
    for block in range(2):
        neck = net.width(f"block{block}", 28)
        h = h + 0.7 * net.conv(relu(net.conv(h, f"block{block}.a", neck, trunk)), f"block{block}.b", trunk, neck)
    h = net.conv(h, "body", trunk, trunk) + head
    h = functional.pixel_shuffle(net.conv(h, "up0", (middle, 4), trunk), 2)
    h = functional.prelu(h, net.param("slope", (middle,)))
    h = functional.pixel_shuffle(net.conv(h, "up1", (last, 4), middle), 2)
    return net.conv(h, "tail", 3, last)


def option_a(net: Net, x: torch.Tensor) -> torch.Tensor:
    trunk = net.width("trunk0", 16)
    x = relu(net.conv_bn(x, "stem", trunk, 3))
    for stage in range(3):
        if stage:
            side = trunk.size // 2
            left, right = (net.width(f"{part}{stage}", side) for part in ("left", "right"))
            places = [*left.kept, *(side + k for k in trunk.kept), *(3 * side + k for k in right.kept)]
            wider = net.width(f"trunk{stage}", 2 * trunk.size, places)
        for block in range(2):
            name, first = f"stage{stage}.{block}", bool(stage) and not block
            neck, target = net.width(name, 16 * 2**stage), wider if first else trunk
            h = net.conv_bn(relu(net.conv_bn(x, f"{name}.a", neck, trunk, stride=1 + first)), f"{name}.b", target, neck)
            if first:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, net.size(left), net.size(right)))
            x, trunk = relu(h + x), target
    return net.linear(x.mean((2, 3)), "head", trunk, 10)


def hrnet(net: Net, x: torch.Tensor) -> torch.Tensor:
    widths = [net.width(f"branch{i}", 12 * 2**i) for i in range(3)]
    x = relu(net.conv_bn(x, "stem", widths[0], 3, stride=2))
    branches = [x]
    for i in (1, 2):
        x = relu(net.conv_bn(x, f"split{i}", widths[i], widths[i - 1], stride=2))
        branches.append(x)

    def fused(name: str, to: int) -> torch.Tensor:
        total = None
        for i, h in enumerate(branches):
            if i > to:
                h = net.conv_bn(h, f"{name}.{i}", widths[to], widths[i], 1)
                h = functional.interpolate(h, scale_factor=float(2 ** (i - to)), mode="nearest")
            source = widths[i]
            for step in range(to - i):
                last = step == to - i - 1
                target = widths[to] if last else net.width(f"{name}.{i}.{step}", widths[i].size)
                h = net.conv_bn(h, f"{name}.{i}.{step}", target, source, stride=2)
                h, source = h if last else relu(h), target
            total = h if total is None else total + h
        return total

    for stage in range(2):
        for i, width in enumerate(widths):
            name = f"stage{stage}.{i}"
            neck = net.width(name, width.size)
            h = net.conv_bn(relu(net.conv_bn(branches[i], f"{name}.a", neck, width)), f"{name}.b", width, neck)
            branches[i] = relu(h + branches[i])
        branches = [relu(fused(f"fuse{stage}.{i}", i)) for i in range(3)]
    sizes = [branches[0]] + [
        functional.interpolate(b, scale_factor=float(2**i), mode="bilinear") for i, b in enumerate(branches) if i
    ]
    return net.conv(torch.cat(sizes, 1), "last", 10, 0, 1, joined=widths)


def detector(net: Net, x: torch.Tensor) -> torch.Tensor:
    levels, source = [], 3
    for i, size in enumerate((16, 24, 40)):
        width = net.width(f"backbone{i}", size)
        x = silu(net.conv_bn(x, f"backbone{i}", width, source, stride=2))
        levels.append((x, width))
        source = width
    (middle, b), (coarse, c) = levels[1:]
    lateral = net.width("lateral", 24)
    joined = torch.cat([functional.interpolate(coarse, scale_factor=2.0, mode="nearest"), middle], 1)
    joined = silu(net.bn(net.conv(joined, "lateral", lateral, 0, joined=(c, b), bias=False), "lateral.bn", lateral))
    boxes, scores = [], []
    for i, (feature, width) in enumerate(((joined, lateral), (coarse, c))):
        for kind, count, found in (("box", 32, boxes), ("score", 6, scores)):
            neck, more = net.width(f"{kind}{i}.0", 20), net.width(f"{kind}{i}.1", 20)
            h = silu(net.conv_bn(feature, f"{kind}{i}.0", neck, width))
            h = silu(net.conv_bn(h, f"{kind}{i}.1", more, neck))
            found.append(net.conv(h, f"{kind}{i}.2", count, more, 1).flatten(2))
    box = torch.cat(boxes, 2).view(-1, 4, 8, 80).softmax(2)
    near, far = (box * torch.arange(8.0).view(1, 1, 8, 1)).sum(2).chunk(2, 1)
    grid = [
        torch.stack(torch.meshgrid(torch.arange(n), torch.arange(n), indexing="xy")).view(2, -1) + 0.5 for n in (8, 4)
    ]
    anchors = torch.cat(grid, 1)[None]
    low, high = anchors - near, anchors + far
    strides = torch.tensor([4.0] * 64 + [8.0] * 16)
    return torch.cat([torch.cat([(low + high) / 2, high - low], 1) * strides, torch.cat(scores, 2).sigmoid()], 1)


def siamese(net: Net, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    first, second, code = net.width("first", 16), net.width("second", 32), net.width("code", 40)
    found = []
    for x in (x1, x2):
        h = functional.max_pool2d(relu(net.conv(x, "first", first, 3, stride=2)), 2)
        h = relu(net.conv(h, "second", second, first))
        found.append(torch.tanh(net.linear(h.amax((2, 3)), "code", second, code)))
    both = torch.cat([(found[0] - found[1]).abs(), found[0] * found[1]], 1)
    h = relu(net.linear(both, "head", 0, 20, joined=(code, code)))
    return torch.sigmoid(net.linear(h, "last", 20, 1))


NETS = {
    "convnext": (convnext, [(3, 32, 32)]),
    "regnet_se": (regnet_se, [(3, 32, 32)]),
    "pixel_shuffle": (pixel_shuffle, [(3, 12, 16)]),
    "option_a": (option_a, [(3, 32, 32)]),
    "hrnet": (hrnet, [(3, 32, 32)]),
    "detector": (detector, [(3, 32, 32)]),
    "siamese": (siamese, [(3, 32, 32), (3, 32, 32)]),
}
"""By name: the network and the shapes of its inputs without the batch."""
