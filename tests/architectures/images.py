"""Convolutional architectures, each as small as its topology lets it be, from the papers that are named."""

from __future__ import annotations

import numpy as np

from tests.architectures.builder import Net
from tests.architectures.widths import BACKBONE, CLASSES, CONVNEXT, REGNET, RESOLUTIONS, bottleneck, shortcut, widths
from tests.halved import Axis, Width

__all__ = ["NETS"]


def convnext(net: Net) -> None:
    """ConvNeXt (Liu et al. 2022): 7x7 depthwise, LayerNorm over channels last, 4x neurons, layer scale, residual.

    The norms hold the residual width; the neurons of the blocks go.
    """

    def norm(x: str, name: str, size: int) -> str:
        return net.transpose(net.layernorm(net.transpose(x, 0, 2, 3, 1), name, size), 0, 3, 1, 2)

    x, size = net.image(), CONVNEXT[0]
    x = norm(net.conv(x, "stem", size, 3, (4, 4), pad=False, strides=[4, 4]), "stem.norm", size)
    for stage, width in enumerate(CONVNEXT):
        if stage:
            x = net.conv(norm(x, "down.norm", size), "down", width, size, (2, 2), pad=False, strides=[2, 2])
        size = width
        for block in range(2):
            name = f"stage{stage}.{block}"
            hidden = net.draw.width(name, 4 * size)
            h = net.depthwise(x, f"{name}.dw", size, (7, 7))
            h = net.layernorm(net.transpose(h, 0, 2, 3, 1), f"{name}.norm", size)
            h = net.linear(net.gelu(net.linear(h, f"{name}.up", size, hidden)), f"{name}.down", hidden, size)
            gamma = net.keep(f"{name}.gamma", net.draw.weight(f"{name}.gamma", (size,), around=0.5))
            x = net.op("Add", x, net.transpose(net.op("Mul", h, gamma), 0, 3, 1, 2))
    y = net.linear(net.layernorm(net.pooled(x), "norm", size), "head", size, CLASSES)
    net.answer(y, shape=["N", 10])


def regnet_se(net: Net) -> None:
    """RegNetY (Radosavovic et al. 2020): bottlenecks with a grouped Conv and squeeze-excitation.

    In the first block of a stage whole groups go, in the second the same positions of every group; trunks go as well.
    """
    x, draw = net.image(), net.draw
    trunk: Axis = widths(draw, "regnet_se")["stem"]
    x = net.op("Relu", net.conv_bn(x, "stem", trunk, 3, strides=[2, 2]))
    for stage, (size, _) in enumerate(REGNET):
        wider = draw.width(f"trunk{stage}", size)
        for block in range(2):
            neck = bottleneck(draw, stage, block)
            name, middle, squeezed, strides = neck.name, (neck.groups, neck.slots), neck.squeezed, [neck.stride] * 2
            h = net.op("Relu", net.conv_bn(x, f"{name}.a", middle, trunk, (1, 1)))
            h = net.conv_bn(h, f"{name}.b", middle, neck.slots, group=draw.size(neck.groups), strides=strides)
            h = net.op("Relu", h)
            s = net.op("Relu", net.conv(net.op("GlobalAveragePool", h), f"{name}.s1", squeezed, middle, (1, 1)))
            s = net.op("Sigmoid", net.conv(s, f"{name}.s2", middle, squeezed, (1, 1), makes=False))
            h = net.conv_bn(net.op("Mul", h, s), f"{name}.c", wider, middle, (1, 1))
            short = x if block else net.conv_bn(x, f"{name}.short", wider, trunk, (1, 1), strides=strides)
            x, trunk = net.op("Relu", net.op("Add", h, short)), wider
    w = net.keep("head.weight", draw.weight("head.weight", (CLASSES, trunk), reads=[1], fan=48))
    b = net.keep("head.bias", draw.weight("head.bias", (CLASSES,)))
    net.answer(net.op("Gemm", net.pooled(x), w, b, transB=1), shape=["N", 10])


def pixel_shuffle(net: Net) -> None:
    """Super-resolution (EDSR, Lim et al. 2017; sub-pixel convolution, Shi et al. 2016) in both channel orders."""
    x, draw = net.image(), net.draw
    size = widths(draw, "pixel_shuffle")
    trunk, middle, last = size["trunk"], size["middle"], size["last"]
    h = head = net.conv(x, "head", trunk, 3)
    for block in range(2):
        neck = size[f"block{block}"]
        r = net.op("Relu", net.conv(h, f"block{block}.a", neck, trunk))
        r = net.op("Mul", net.conv(r, f"block{block}.b", trunk, neck), net.scalar(0.7))
        h = net.op("Add", h, r)
    h = net.op("Add", net.conv(h, "body", trunk, trunk), head)
    h = net.op("DepthToSpace", net.conv(h, "up0", (middle, 4), trunk), blocksize=2, mode="CRD")
    slope = net.keep("slope", draw.weight("slope", (middle, 1, 1)))
    h = net.conv(net.op("PRelu", h, slope), "up1", (4, last), middle)
    h = net.op("DepthToSpace", h, blocksize=2, mode="DCR")
    net.answer(net.conv(h, "tail", 3, last), shape=["N", 3, None, None])


def option_a(net: Net) -> None:
    """ResNet for CIFAR (He et al. 2016) with the shortcut of option A: every second pixel, zeros as new channels."""
    x, draw = net.image(), net.draw
    trunk = draw.width("trunk0", 16)
    x = net.op("Relu", net.conv_bn(x, "stem", trunk, 3))
    for stage in range(3):
        if stage:
            way = shortcut(draw, stage, trunk)
        for block in range(2):
            name, first = f"stage{stage}.{block}", bool(stage) and not block
            neck, target = draw.width(name, 16 * 2**stage), way.wider if first else trunk
            h = net.op("Relu", net.conv_bn(x, f"{name}.a", neck, trunk, strides=[1 + first] * 2))
            h = net.conv_bn(h, f"{name}.b", target, neck)
            if first:
                pads = net.ints(0, draw.size(way.left), 0, 0, 0, draw.size(way.right), 0, 0)
                x = net.op("Slice", x, net.ints(0, 0), net.ints(2**60, 2**60), net.ints(2, 3), net.ints(2, 2))
                x = net.op("Pad", x, pads)
            x, trunk = net.op("Relu", net.op("Add", h, x)), target
    net.answer(net.linear(net.pooled(x), "head", trunk, CLASSES), shape=["N", 10])


def hrnet(net: Net) -> None:
    """HRNet (Wang et al. 2020): three resolutions that are fused with each other, up by Resize and down by stride."""
    x, draw = net.image(), net.draw
    sizes = list(widths(draw, "hrnet").values())
    x = net.op("Relu", net.conv_bn(x, "stem", sizes[0], 3, strides=[2, 2]))
    branches = [x]
    for i in (1, 2):
        x = net.op("Relu", net.conv_bn(x, f"split{i}", sizes[i], sizes[i - 1], strides=[2, 2]))
        branches.append(x)
    for stage in range(2):
        for i, width in enumerate(sizes):
            name = f"stage{stage}.{i}"
            neck = draw.width(name, width.size)
            h = net.op("Relu", net.conv_bn(branches[i], f"{name}.a", neck, width))
            h = net.conv_bn(h, f"{name}.b", width, neck)
            branches[i] = net.op("Relu", net.op("Add", h, branches[i]))
        branches = [net.op("Relu", _fused(net, f"fuse{stage}.{i}", i, branches, sizes)) for i in range(RESOLUTIONS)]
    grown = [net.op("Resize", b, "", net.keep(f"up{4**i}", _scales(2**i)), mode="nearest") for i, b in
             enumerate(branches)]  # fmt: skip
    h = net.op("Concat", *grown, axis=1)
    # the reader's columns follow the concatenation: three sets of channels in a row
    parts = [draw.weight(f"last.{i}", (10, width, 1, 1), reads=[1], fan=84) for i, width in enumerate(sizes)]
    net.answer(net.op("Conv", h, net.keep("last", np.concatenate(parts, 1))), shape=["N", 10, None, None])


def _scales(factor: int) -> np.ndarray:
    return np.array([1, 1, factor, factor], np.float32)


def _fused(net: Net, name: str, to: int, branches: list[str], sizes: list[Width]) -> str:
    """The sum of all branches at the resolution of one of them."""
    total = ""
    for i, branch in enumerate(branches):
        h = branch
        if i > to:
            h = net.conv_bn(h, f"{name}.{i}", sizes[to], sizes[i], (1, 1))
            factor = 2 ** (i - to)
            h = net.op("Resize", h, "", net.keep(f"up{factor**2}", _scales(factor)), mode="nearest")
        for step in range(to - i):
            last = step == to - i - 1
            target = sizes[to] if last else net.draw.width(f"{name}.{i}.{step}", sizes[i].size)
            source = sizes[i] if not step else net.draw.width(f"{name}.{i}.{step - 1}", sizes[i].size)
            h = net.conv_bn(h, f"{name}.{i}.{step}", target, source, strides=[2, 2])
            h = h if last else net.op("Relu", h)
        total = net.op("Add", total, h) if total else h
    return total


def detector(net: Net) -> None:
    """A detection head without anchors (YOLOv8 and GFL, Li et al. 2020) over a feature pyramid.

    Boxes are expected values of distributions: Softmax over 8 bins and a Conv whose weights are 0 to 7.
    """
    x, draw = net.image(size=(32, 32)), net.draw
    levels: list[tuple[str, Width]] = []
    source: Axis = 3
    size = widths(draw, "detector")
    for i in range(len(BACKBONE)):
        width = size[f"backbone{i}"]
        x = net.silu(net.conv_bn(x, f"backbone{i}", width, source, strides=[2, 2]))
        levels.append((x, width))
        source = width
    (fine, a), (middle, b), (coarse, c) = levels
    up = net.op("Resize", coarse, "", net.keep("twice", _scales(2)), mode="nearest")
    joined = net.op("Concat", up, middle, axis=1)
    lateral = size["lateral"]
    parts = [
        draw.weight(f"lateral.{n}", (lateral, w, 3, 3), makes=[0], reads=[1], fan=576) for n, w in enumerate((c, b))
    ]
    joined = net.op("Conv", joined, net.keep("lateral", np.concatenate(parts, 1)), pads=[1] * 4)
    joined = net.silu(net.batchnorm(joined, "lateral.bn", lateral))
    del fine, a
    boxes: list[str] = []
    scores: list[str] = []
    for i, (feature, width) in enumerate(((joined, lateral), (coarse, c))):
        for kind, count, found in (("box", 32, boxes), ("score", 6, scores)):
            neck, more = size[f"{kind}{i}.0"], size[f"{kind}{i}.1"]
            h = net.silu(net.conv_bn(feature, f"{kind}{i}.0", neck, width))
            h = net.silu(net.conv_bn(h, f"{kind}{i}.1", more, neck))
            found.append(net.reshape(net.conv(h, f"{kind}{i}.2", count, more, (1, 1)), 0, count, -1))
    box = net.reshape(net.op("Concat", *boxes, axis=2), 0, 4, 8, 80)
    box = net.op("Softmax", net.transpose(box, 0, 2, 1, 3), axis=1)
    bins = net.keep("bins", np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1))
    box = net.reshape(net.op("Conv", box, bins), 0, 4, 80)
    near, far = net.ops(2, "Split", box, net.ints(2, 2), axis=1)
    grid = [np.stack(np.meshgrid(np.arange(n), np.arange(n)), 0).reshape(2, -1) + 0.5 for n in (8, 4)]
    anchors = net.keep("anchors", np.concatenate(grid, 1)[None].astype(np.float32))
    low, high = net.op("Sub", anchors, near), net.op("Add", anchors, far)
    center = net.op("Div", net.op("Add", low, high), net.scalar(2))
    strides = net.keep("strides", np.repeat(np.array([4, 8], np.float32), [64, 16])[None, None])
    box = net.op("Mul", net.op("Concat", center, net.op("Sub", high, low), axis=1), strides)
    score = net.op("Sigmoid", net.op("Concat", *scores, axis=2))
    net.answer(net.op("Concat", box, score, axis=1), shape=["N", 10, 80])


def siamese(net: Net) -> None:
    """One trunk on two images (Bromley et al. 1993; Koch et al. 2015), compared by difference and product."""
    draw, found = net.draw, []
    first, second, code = widths(draw, "siamese").values()
    for name in ("x1", "x2"):
        h = net.op("Relu", net.conv(net.image(name), "first", first, 3, strides=[2, 2]))
        h = net.op("Relu", net.conv(net.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2]), "second", second, first))
        found.append(net.op("Tanh", net.linear(net.op("Flatten", net.op("GlobalMaxPool", h)), "code", second, code)))
    apart = net.op("Abs", net.op("Sub", *found))
    both = net.op("Concat", apart, net.op("Mul", *found), axis=1)
    parts = [draw.weight(f"head.{i}", (code, 20), reads=[0], fan=80) for i in range(2)]
    h = net.op("MatMul", both, net.keep("head", np.concatenate(parts, 0)))
    net.answer(net.op("Sigmoid", net.linear(net.op("Relu", h), "last", 20, 1)), shape=["N", 1])


NETS = {
    "convnext": convnext,
    "regnet_se": regnet_se,
    "pixel_shuffle": pixel_shuffle,
    "option_a": option_a,
    "hrnet": hrnet,
    "detector": detector,
    "siamese": siamese,
}
"""By name."""
