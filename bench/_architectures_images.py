"""Convolutional architectures in PyTorch; what each has and what goes is said in `tests/architectures/images.py`."""

from __future__ import annotations

import torch
from _architectures_torch import Net
from torch.nn import functional

from tests.architectures.widths import BACKBONE, CLASSES, CONVNEXT, REGNET, RESOLUTIONS, bottleneck, shortcut, widths

relu, silu = functional.relu, functional.silu


def convnext(net: Net, x: torch.Tensor) -> torch.Tensor:
    def norm(x: torch.Tensor, name: str, size: int) -> torch.Tensor:
        return net.norm(x.permute(0, 2, 3, 1), name, size).permute(0, 3, 1, 2)

    size = CONVNEXT[0]
    x = norm(net.conv(x, "stem", size, 3, 4, stride=4, padding=0), "stem.norm", size)
    for stage, width in enumerate(CONVNEXT):
        if stage:
            x = net.conv(norm(x, "down.norm", size), "down", width, size, 2, stride=2, padding=0)
        size = width
        for block in range(2):
            name = f"stage{stage}.{block}"
            h = net.conv(x, f"{name}.dw", size, 1, 7, groups=size).permute(0, 2, 3, 1)
            h = net.mlp(net.norm(h, f"{name}.norm", size), name, size, net.width(name, 4 * size))
            x = x + (h * net.param(f"{name}.gamma", (size,), around=0.5)).permute(0, 3, 1, 2)
    return net.linear(net.norm(x.mean((2, 3)), "norm", size), "head", size, CLASSES)


def regnet_se(net: Net, x: torch.Tensor) -> torch.Tensor:
    trunk = widths(net.draw, "regnet_se")["stem"]
    x = relu(net.conv_bn(x, "stem", trunk, 3, stride=2))
    for stage, (size, _) in enumerate(REGNET):
        wider = net.width(f"trunk{stage}", size)
        for block in range(2):
            neck = bottleneck(net.draw, stage, block)
            name, middle, squeezed, stride = neck.name, (neck.groups, neck.slots), neck.squeezed, neck.stride
            h = relu(net.conv_bn(x, f"{name}.a", middle, trunk, 1))
            h = relu(net.conv_bn(h, f"{name}.b", middle, neck.slots, groups=net.size(neck.groups), stride=stride))
            s = relu(net.conv(functional.adaptive_avg_pool2d(h, 1), f"{name}.s1", squeezed, middle, 1))
            h = h * torch.sigmoid(net.conv(s, f"{name}.s2", middle, squeezed, 1, makes=False))
            short = x if block else net.conv_bn(x, f"{name}.short", wider, trunk, 1, stride=2)
            x, trunk = relu(net.conv_bn(h, f"{name}.c", wider, middle, 1) + short), wider
    return net.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1), "head", trunk, CLASSES)


def pixel_shuffle(net: Net, x: torch.Tensor) -> torch.Tensor:
    size = widths(net.draw, "pixel_shuffle")
    trunk, middle, last = size["trunk"], size["middle"], size["last"]
    h = head = net.conv(x, "head", trunk, 3)
    for block in range(2):
        neck = size[f"block{block}"]
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
            way = shortcut(net.draw, stage, trunk)
        for block in range(2):
            name, first = f"stage{stage}.{block}", bool(stage) and not block
            neck, target = net.width(name, 16 * 2**stage), way.wider if first else trunk
            h = net.conv_bn(relu(net.conv_bn(x, f"{name}.a", neck, trunk, stride=1 + first)), f"{name}.b", target, neck)
            if first:
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, net.size(way.left), net.size(way.right)))
            x, trunk = relu(h + x), target
    return net.linear(x.mean((2, 3)), "head", trunk, CLASSES)


def hrnet(net: Net, x: torch.Tensor) -> torch.Tensor:
    sizes = list(widths(net.draw, "hrnet").values())
    x = relu(net.conv_bn(x, "stem", sizes[0], 3, stride=2))
    branches = [x]
    for i in (1, 2):
        x = relu(net.conv_bn(x, f"split{i}", sizes[i], sizes[i - 1], stride=2))
        branches.append(x)

    def fused(name: str, to: int) -> torch.Tensor:
        total = None
        for i, h in enumerate(branches):
            if i > to:
                h = net.conv_bn(h, f"{name}.{i}", sizes[to], sizes[i], 1)
                h = functional.interpolate(h, scale_factor=float(2 ** (i - to)), mode="nearest")
            source = sizes[i]
            for step in range(to - i):
                last = step == to - i - 1
                target = sizes[to] if last else net.width(f"{name}.{i}.{step}", sizes[i].size)
                h = net.conv_bn(h, f"{name}.{i}.{step}", target, source, stride=2)
                h, source = h if last else relu(h), target
            total = h if total is None else total + h
        return total

    for stage in range(2):
        for i, width in enumerate(sizes):
            name = f"stage{stage}.{i}"
            neck = net.width(name, width.size)
            h = net.conv_bn(relu(net.conv_bn(branches[i], f"{name}.a", neck, width)), f"{name}.b", width, neck)
            branches[i] = relu(h + branches[i])
        branches = [relu(fused(f"fuse{stage}.{i}", i)) for i in range(RESOLUTIONS)]
    grown = [branches[0]] + [
        functional.interpolate(b, scale_factor=float(2**i), mode="bilinear") for i, b in enumerate(branches) if i
    ]
    return net.conv(torch.cat(grown, 1), "last", CLASSES, 0, 1, joined=sizes)


def detector(net: Net, x: torch.Tensor) -> torch.Tensor:
    size, levels, source = widths(net.draw, "detector"), [], 3
    for i in range(len(BACKBONE)):
        width = size[f"backbone{i}"]
        x = silu(net.conv_bn(x, f"backbone{i}", width, source, stride=2))
        levels.append((x, width))
        source = width
    (middle, b), (coarse, c) = levels[1:]
    lateral = size["lateral"]
    joined = torch.cat([functional.interpolate(coarse, scale_factor=2.0, mode="nearest"), middle], 1)
    joined = silu(net.bn(net.conv(joined, "lateral", lateral, 0, joined=(c, b), bias=False), "lateral.bn", lateral))
    boxes, scores = [], []
    for i, (feature, width) in enumerate(((joined, lateral), (coarse, c))):
        for kind, count, found in (("box", 32, boxes), ("score", 6, scores)):
            neck, more = size[f"{kind}{i}.0"], size[f"{kind}{i}.1"]
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
    first, second, code = widths(net.draw, "siamese").values()
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
