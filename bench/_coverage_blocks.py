"""The eleven networks of `coverage_nets.py`: every topology that makes channel removal hard, each as small as it gets.

Every class takes `w`, a function from a full width to the width to build: the identity, or half of it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class CBA(nn.Sequential):
    """Conv, BatchNorm, activation."""

    def __init__(self, cin, cout, k=3, s=1, g=1, act=nn.ReLU):
        layers = [nn.Conv2d(cin, cout, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(cout)]
        super().__init__(*layers, *([act()] if act else []))


class Vgg(nn.Module):
    """Conv stack, MaxPool, Flatten of a 4x4 map, two Linear."""

    size = 32

    def __init__(self, w):
        super().__init__()
        self.features = nn.Sequential(
            CBA(3, w(16)),
            nn.MaxPool2d(2),
            CBA(w(16), w(32)),
            CBA(w(32), w(32)),
            nn.MaxPool2d(2),
            CBA(w(32), w(48)),
            CBA(w(48), w(48)),
            nn.MaxPool2d(2),
        )
        self.fc1 = nn.Linear(w(48) * 16, w(64))
        self.head = nn.Linear(w(64), 10)

    def forward(self, x):
        x = torch.flatten(self.features(x), 1)
        return self.head(functional.dropout(functional.relu(self.fc1(x)), 0.5, self.training))


class ResBlock(nn.Module):
    def __init__(self, cin, cout, s=1, g=1, mid=None):
        super().__init__()
        mid = mid or cout
        if g > 1:
            self.body = nn.Sequential(CBA(cin, mid, 1), CBA(mid, mid, 3, s, g), CBA(mid, cout, 1, act=None))
        else:
            self.body = nn.Sequential(CBA(cin, mid, 3, s), CBA(mid, cout, 3, act=None))
        self.short = None if s == 1 and cin == cout else CBA(cin, cout, 1, s, act=None)

    def forward(self, x):
        y = x if self.short is None else self.short(x)
        return functional.relu(self.body(x) + y)


class ResNet(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()
        self.stem = CBA(3, w(16))
        self.layers = nn.Sequential(
            ResBlock(w(16), w(16)),
            ResBlock(w(16), w(16)),
            ResBlock(w(16), w(32), 2),
            ResBlock(w(32), w(32)),
            ResBlock(w(32), w(48), 2),
        )
        self.head = nn.Linear(w(48), 10)

    def forward(self, x):
        return self.head(self.layers(self.stem(x)).mean((2, 3)))


class ResNeXt(nn.Module):
    """Residual bottlenecks with a Conv of 4 groups."""

    size = 32

    def __init__(self, w):
        super().__init__()
        self.stem = CBA(3, w(32))
        self.layers = nn.Sequential(
            ResBlock(w(32), w(64), 1, 4, w(32)),
            ResBlock(w(64), w(64), 1, 4, w(32)),
            ResBlock(w(64), w(128), 2, 4, w(64)),
            ResBlock(w(128), w(128), 1, 4, w(64)),
        )
        self.head = nn.Linear(w(128), 10)

    def forward(self, x):
        return self.head(functional.adaptive_avg_pool2d(self.layers(self.stem(x)), 1).flatten(1))


class SE(nn.Module):
    def __init__(self, c, r):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(c, r, 1), nn.Conv2d(r, c, 1)

    def forward(self, x):
        g = functional.relu(self.fc1(functional.adaptive_avg_pool2d(x, 1)))
        return x * functional.hardsigmoid(self.fc2(g))


class InvRes(nn.Module):
    """MobileNet inverted residual, with squeeze-excite when se > 0."""

    def __init__(self, cin, mid, cout, k=3, s=1, se=0, act=nn.ReLU6):
        super().__init__()
        self.body = nn.Sequential(
            CBA(cin, mid, 1, act=act),
            CBA(mid, mid, k, s, mid, act),
            SE(mid, se) if se else nn.Identity(),
            CBA(mid, cout, 1, act=None),
        )
        self.res = s == 1 and cin == cout

    def forward(self, x):
        return x + self.body(x) if self.res else self.body(x)


class MobileNetV2(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()
        self.net = nn.Sequential(
            CBA(3, w(16), act=nn.ReLU6),
            InvRes(w(16), w(64), w(24), s=2),
            InvRes(w(24), w(96), w(24)),
            InvRes(w(24), w(96), w(40), s=2),
            InvRes(w(40), w(160), w(40)),
            InvRes(w(40), w(160), w(40)),
            CBA(w(40), w(240), 1, act=nn.ReLU6),
        )
        self.head = nn.Linear(w(240), 10)

    def forward(self, x):
        return self.head(functional.adaptive_avg_pool2d(self.net(x), 1).flatten(1))


class MobileNetV3(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()
        hs = nn.Hardswish
        self.net = nn.Sequential(
            CBA(3, w(16), act=hs),
            InvRes(w(16), w(48), w(24), 3, 2, act=nn.ReLU),
            InvRes(w(24), w(96), w(40), 5, 2, w(24), hs),
            InvRes(w(40), w(160), w(40), 5, 1, w(40), hs),
            InvRes(w(40), w(160), w(40), 5, 1, w(40), hs),
            CBA(w(40), w(160), 1, act=hs),
        )
        self.fc = nn.Linear(w(160), w(128))
        self.head = nn.Linear(w(128), 10)

    def forward(self, x):
        x = functional.adaptive_avg_pool2d(self.net(x), 1).flatten(1)
        return self.head(functional.hardswish(self.fc(x)))


class DenseLayer(nn.Module):
    """Pre-activation: BN, ReLU, Conv 1x1, BN, ReLU, Conv 3x3, Concat."""

    def __init__(self, cin, growth):
        super().__init__()
        self.n1, self.c1 = nn.BatchNorm2d(cin), nn.Conv2d(cin, 4 * growth, 1, bias=False)
        self.n2, self.c2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.c2(functional.relu(self.n2(self.c1(functional.relu(self.n1(x))))))
        return torch.cat([x, y], 1)


class Transition(nn.Module):
    def __init__(self, cin, cout):
        super().__init__()
        self.n, self.c = nn.BatchNorm2d(cin), nn.Conv2d(cin, cout, 1, bias=False)

    def forward(self, x):
        return functional.avg_pool2d(self.c(functional.relu(self.n(x))), 2)


class DenseNet(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()
        g, c, mods = w(12), w(24), []
        self.stem = nn.Conv2d(3, c, 3, padding=1, bias=False)
        for block in range(3):
            for _ in range(4):
                mods.append(DenseLayer(c, g))
                c += g
            if block < 2:
                mods.append(Transition(c, c // 2))
                c //= 2
        self.body = nn.Sequential(*mods)
        self.norm, self.head = nn.BatchNorm2d(c), nn.Linear(c, 10)

    def forward(self, x):
        x = functional.relu(self.norm(self.body(self.stem(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class InceptionBlock(nn.Module):
    def __init__(self, cin, b0, r1, b1, r2, b2, p):
        super().__init__()
        self.b0 = CBA(cin, b0, 1)
        self.b1 = nn.Sequential(CBA(cin, r1, 1), CBA(r1, b1, 3))
        self.b2 = nn.Sequential(CBA(cin, r2, 1), CBA(r2, b2, 3), CBA(b2, b2, 3))
        self.p = CBA(cin, p, 1)

    def forward(self, x):
        pool = functional.avg_pool2d(x, 3, 1, 1)
        return torch.cat([self.b0(x), self.b1(x), self.b2(x), self.p(pool)], 1)


class Inception(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()

        def block(cin, *c):
            return InceptionBlock(cin, *map(w, c))

        self.net = nn.Sequential(
            CBA(3, w(16), s=2),
            block(w(16), 16, 16, 24, 8, 16, 8),
            block(w(64), 24, 24, 40, 8, 16, 16),
            nn.MaxPool2d(2),
            block(w(96), 32, 24, 48, 16, 24, 24),
        )
        self.head = nn.Linear(w(128), 10)

    def forward(self, x):
        return self.head(functional.adaptive_avg_pool2d(self.net(x), 1).flatten(1))


class Bottle(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.cv1, self.cv2 = CBA(c, c, act=nn.SiLU), CBA(c, c, act=nn.SiLU)

    def forward(self, x):
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """YOLOv8 block: one Conv, chunk in two, chain of bottlenecks, Concat of all."""

    def __init__(self, cin, cout, n):
        super().__init__()
        self.cv1 = CBA(cin, cout, 1, act=nn.SiLU)
        self.m = nn.ModuleList(Bottle(cout // 2) for _ in range(n))
        self.cv2 = CBA((2 + n) * (cout // 2), cout, 1, act=nn.SiLU)

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        for m in self.m:
            y.append(m(y[-1]))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """C2f backbone, SPPF, nearest upsampling with a skip Concat, two heads."""

    size = 32

    def __init__(self, w):
        super().__init__()
        s = nn.SiLU
        self.stem = CBA(3, w(16), 3, 2, act=s)
        self.c1 = C2f(w(16), w(32), 1)
        self.down = CBA(w(32), w(48), 3, 2, act=s)
        self.c2 = C2f(w(48), w(48), 2)
        self.sp1, self.sp2 = CBA(w(48), w(24), 1, act=s), CBA(w(96), w(48), 1, act=s)
        self.c3 = C2f(w(80), w(32), 1)
        self.heads = nn.ModuleList([nn.Conv2d(w(32), 18, 1), nn.Conv2d(w(48), 18, 1)])

    def forward(self, x):
        p = self.c1(self.stem(x))
        q = self.c2(self.down(p))
        s = [self.sp1(q)]
        for _ in range(3):
            s.append(functional.max_pool2d(s[-1], 5, 1, 2))
        q = self.sp2(torch.cat(s, 1))
        p = self.c3(torch.cat([functional.interpolate(q, scale_factor=2.0, mode="nearest"), p], 1))
        a, b = self.heads[0](p).flatten(2), self.heads[1](q).flatten(2)
        return torch.cat([a, b], 2).transpose(1, 2)


class UNet(nn.Module):
    """Encoder and decoder with ConvTranspose and skip Concat."""

    size = 32

    def __init__(self, w):
        super().__init__()

        def pair(cin, cout):
            return nn.Sequential(CBA(cin, cout), CBA(cout, cout))

        self.e1, self.e2, self.mid = pair(3, w(16)), pair(w(16), w(24)), pair(w(24), w(40))
        self.u2, self.d2 = nn.ConvTranspose2d(w(40), w(24), 2, 2), pair(w(48), w(24))
        self.u1, self.d1 = nn.ConvTranspose2d(w(24), w(16), 2, 2), pair(w(32), w(16))
        self.head = nn.Conv2d(w(16), 2, 1)

    def forward(self, x):
        a = self.e1(x)
        b = self.e2(functional.max_pool2d(a, 2))
        y = self.mid(functional.max_pool2d(b, 2))
        y = self.d2(torch.cat([b, self.u2(y)], 1))
        y = self.d1(torch.cat([a, self.u1(y)], 1))
        return self.head(y)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2 unit: split or stride two, then channel shuffle in two groups."""

    def __init__(self, cin, cout, s):
        super().__init__()
        self.s, h = s, cout // 2
        b = cin if s == 2 else cin // 2
        self.b1 = nn.Sequential(CBA(cin, cin, 3, 2, cin, None), CBA(cin, h, 1)) if s == 2 else None
        self.b2 = nn.Sequential(CBA(b, h, 1), CBA(h, h, 3, s, h, None), CBA(h, h, 1))

    def forward(self, x):
        if self.s == 2:
            y = torch.cat([self.b1(x), self.b2(x)], 1)
        else:
            a, b = x.chunk(2, 1)
            y = torch.cat([a, self.b2(b)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleNet(nn.Module):
    size = 32

    def __init__(self, w):
        super().__init__()
        mods = [CBA(3, w(16), 3, 2)]
        for cin, cout in ((16, 64), (64, 128)):
            mods += [
                ShuffleUnit(w(cin), w(cout), 2),
                ShuffleUnit(w(cout), w(cout), 1),
                ShuffleUnit(w(cout), w(cout), 1),
            ]
        self.net = nn.Sequential(*mods, CBA(w(128), w(192), 1))
        self.head = nn.Linear(w(192), 10)

    def forward(self, x):
        return self.head(self.net(x).mean((2, 3)))


class VitBlock(nn.Module):
    def __init__(self, d, heads, hd, ffn):
        super().__init__()
        self.heads, self.hd = heads, hd
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.proj = nn.Linear(d, 3 * heads * hd), nn.Linear(heads * hd, d)
        self.fc1, self.fc2 = nn.Linear(d, ffn), nn.Linear(ffn, d)

    def forward(self, x):
        b, t, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).reshape(b, t, 3, self.heads, self.hd).permute(2, 0, 3, 1, 4).unbind(0)
        a = ((q @ k.transpose(-2, -1)) * self.hd**-0.5).softmax(-1) @ v
        x = x + self.proj(a.transpose(1, 2).reshape(b, t, self.heads * self.hd))
        return x + self.fc2(functional.gelu(self.fc1(self.n2(x))))


class ViT(nn.Module):
    """Fused qkv; the residual width stays, half of the heads and neurons go."""

    size = 32
    keep = ("patch", "proj", "fc2", "head")

    def __init__(self, w):
        super().__init__()
        d = 48
        self.patch = nn.Conv2d(3, d, 8, 8)
        self.cls, self.pos = nn.Parameter(torch.zeros(1, 1, d)), nn.Parameter(torch.zeros(1, 17, d))
        self.blocks = nn.Sequential(*[VitBlock(d, w(4), 12, w(192)) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, 10)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x], 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


NETS = {
    "vgg": Vgg,
    "resnet": ResNet,
    "mobilenetv2": MobileNetV2,
    "mobilenetv3": MobileNetV3,
    "densenet": DenseNet,
    "inception": Inception,
    "yolo_c2f": Yolo,
    "unet": UNet,
    "shufflenet": ShuffleNet,
    "resnext": ResNeXt,
    "vit": ViT,
}
