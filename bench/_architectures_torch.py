"""Layers for the PyTorch twins of `tests/architectures`: the same draws, as modules that both exporters take.

A network is one function `(net, x) -> y`; a layer is made when it is first called, from weights that its name seeds,
and is found by its name afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tests.halved import Axis, Draw, Width

Body = Callable[..., torch.Tensor]


class Net(nn.Module):
    """A network whose layers are made on the first call."""

    def __init__(self, draw: Draw, body: Body) -> None:
        super().__init__()
        self.draw = draw
        self.body = body
        self.layers = nn.ModuleDict()
        self.tables = nn.ParameterDict()

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.body(self, *inputs)

    # ------------------------------------------------------------------ weights
    def width(self, name: str, size: int, kept: Sequence[int] | None = None) -> Width:
        return self.draw.width(name, size, kept)

    def size(self, axis: Axis) -> int:
        return self.draw.size(axis)

    def param(self, name: str, axes: Sequence[Axis], **options: Any) -> torch.Tensor:
        """A bare parameter by its name."""
        key = name.replace(".", "_")
        if key not in self.tables:
            self.tables[key] = nn.Parameter(torch.from_numpy(self.draw.weight(name, axes, **options)))
        return self.tables[key]

    def table(self, name: str, values: np.ndarray, axes: Sequence[Axis]) -> torch.Tensor:
        """Given numbers, cut like a weight."""
        key = name.replace(".", "_")
        if key not in self.tables:
            self.tables[key] = nn.Parameter(torch.from_numpy(self.draw.table(values, axes)))
        return self.tables[key]

    def _layer(
        self, name: str, make: Callable[[], nn.Module], values: Callable[[], dict[str, np.ndarray]]
    ) -> nn.Module:
        key = name.replace(".", "_")
        if key not in self.layers:
            layer = make()
            with torch.no_grad():
                for part, array in values().items():
                    getattr(layer, part).copy_(torch.from_numpy(np.ascontiguousarray(array)))
            self.layers[key] = layer.eval()
        return self.layers[key]

    # ------------------------------------------------------------------ layers
    def conv(
        self,
        x: torch.Tensor,
        name: str,
        cout: Axis,
        cin: Axis,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        padding: int | None = None,
        dilation: int = 1,
        bias: bool = True,
        parts: Sequence[tuple[Axis, bool]] | None = None,
        joined: Sequence[Axis] | None = None,
        makes: bool = True,
        reads: bool = True,
    ) -> torch.Tensor:
        """Conv1d or Conv2d by the rank of x.

        `parts` stacks outputs of several axes, each of which makes its channels or not; `joined` reads a concatenation.
        """
        kind = nn.Conv1d if x.dim() == 3 else nn.Conv2d
        taps = [kernel] * (x.dim() - 2)
        outs = parts or [(cout, makes)]
        ins = joined or [cin]
        fan = sum(self.draw._full(i) for i in ins) * kernel ** len(taps)

        def make() -> nn.Module:
            pad = kernel // 2 if padding is None else padding
            count = sum(self.size(axis) for axis, _ in outs)
            return kind(
                sum(self.size(i) for i in ins) * groups, count, kernel, stride, pad, dilation, groups, bias=bias
            )

        def values() -> dict[str, np.ndarray]:
            rows = [
                np.concatenate(
                    [
                        self.draw.weight(f"{name}.{k}.{j}", (o, i, *taps), makes=[0] * m, reads=[1] * reads, fan=fan)
                        for j, i in enumerate(ins)
                    ],
                    1,
                )
                for k, (o, m) in enumerate(outs)
            ]
            found = {"weight": np.concatenate(rows)}
            if bias:
                found["bias"] = np.concatenate(
                    [self.draw.weight(f"{name}.bias.{k}", (o,), makes=[0] * m) for k, (o, m) in enumerate(outs)]
                )
            return found

        return self._layer(name, make, values)(x)

    def bn(self, x: torch.Tensor, name: str, axis: Axis) -> torch.Tensor:
        """BatchNorm2d with statistics far from the identity."""

        def values() -> dict[str, np.ndarray]:
            parts = (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0))
            return {
                part: self.draw.weight(f"{name}.{part}", (axis,), makes=[0] * (part != "running_var"), around=around)
                for part, around in parts
            }

        return self._layer(name, lambda: nn.BatchNorm2d(self.size(axis)), values)(x)

    def conv_bn(
        self, x: torch.Tensor, name: str, cout: Axis, cin: Axis, kernel: int = 3, **options: Any
    ) -> torch.Tensor:
        return self.bn(self.conv(x, name, cout, cin, kernel, bias=False, **options), f"{name}.bn", cout)

    def linear(
        self,
        x: torch.Tensor,
        name: str,
        cin: Axis,
        cout: Axis,
        *,
        bias: bool = True,
        makes: bool = True,
        reads: bool = True,
        parts: Sequence[tuple[Axis, bool, bool]] | None = None,
        joined: Sequence[Axis] | None = None,
    ) -> torch.Tensor:
        """Linear; `parts`: (axis, whether it makes its channels, whether it silences them for what reads them)."""
        outs = parts or [(cout, makes, False)]
        ins = joined or [cin]
        fan = 2 * sum(self.draw._full(i) for i in ins)

        def make() -> nn.Module:
            return nn.Linear(sum(self.size(i) for i in ins), sum(self.size(o) for o, _, _ in outs), bias=bias)

        def values() -> dict[str, np.ndarray]:
            rows = [
                np.concatenate(
                    [
                        self.draw.weight(f"{name}.{k}.{j}", (o, i), makes=[0] * m, reads=[0] * s + [1] * reads, fan=fan)
                        for j, i in enumerate(ins)
                    ],
                    1,
                )
                for k, (o, m, s) in enumerate(outs)
            ]
            found = {"weight": np.concatenate(rows)}
            if bias:
                found["bias"] = np.concatenate(
                    [
                        self.draw.weight(f"{name}.bias.{k}", (o,), makes=[0] * m, reads=[0] * s)
                        for k, (o, m, s) in enumerate(outs)
                    ]
                )
            return found

        return self._layer(name, make, values)(x)

    def norm(self, x: torch.Tensor, name: str, size: int) -> torch.Tensor:
        """LayerNorm over the last axis, whose width stays."""

        def values() -> dict[str, np.ndarray]:
            return {
                "weight": self.draw.weight(f"{name}.weight", (size,), around=1.0),
                "bias": self.draw.weight(f"{name}.bias", (size,)),
            }

        return self._layer(name, lambda: nn.LayerNorm(size), values)(x)

    def embedding(self, x: torch.Tensor, name: str, count: int, size: int) -> torch.Tensor:
        def values() -> dict[str, np.ndarray]:
            return {"weight": self.draw.weight(name, (count, size), fan=2)}

        return self._layer(name, lambda: nn.Embedding(count, size), values)(x)

    def gru(self, x: torch.Tensor, name: str, size: Axis, hidden: Width, *, both: bool) -> tuple[torch.Tensor, ...]:
        """GRU over [N, T, size]; a unit is dead where its candidate is: h' = z h then."""

        def values() -> dict[str, np.ndarray]:
            found = {}
            for direction, suffix in enumerate(("", "_reverse")[: 1 + both]):
                for kind, axis in (("ih", size), ("hh", hidden)):
                    rows, biases = [], []
                    for gate in "rzn":
                        made = [0] if gate == "n" else []
                        label, fan = f"{name}.{kind}.{gate}.{direction}", 2 * self.draw._full(axis)
                        rows.append(self.draw.weight(label, (hidden, axis), makes=made, reads=[1], fan=fan))
                        biases.append(self.draw.weight(f"{label}.bias", (hidden,), makes=made))
                    found[f"weight_{kind}_l0{suffix}"] = np.concatenate(rows)
                    found[f"bias_{kind}_l0{suffix}"] = np.concatenate(biases)
            return found

        def make() -> nn.Module:
            return nn.GRU(self.size(size), self.size(hidden), batch_first=True, bidirectional=both)

        return self._layer(name, make, values)(x)

    def mlp(self, x: torch.Tensor, name: str, size: int, hidden: Width) -> torch.Tensor:
        return self.linear(functional.gelu(self.linear(x, f"{name}.up", size, hidden)), f"{name}.down", hidden, size)
