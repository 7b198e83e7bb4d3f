"""Write ONNX graphs layer by layer, with weights of which half of the channels are dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.halved import Axis, Draw

__all__ = ["Net"]

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@dataclass(slots=True)
class Net:
    """A graph in the making; values are their names. Every layer takes its name, from which its weights are drawn."""

    draw: Draw
    opset: int = 17
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    # -------------------------------------------------------------------------------------------- pieces

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(1, op_type, *inputs, **attributes)[0]

    def ops(self, count: int, op_type: str, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several outputs."""
        number = len(self.nodes)
        names = [f"v{number}_{index}" for index in range(count)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, f"{op_type}_{number}", **attributes))
        return names

    def keep(self, name: str, array: np.ndarray) -> str:
        """An initializer by its name; the same one where it is there already."""
        if name in self.weights:
            assert np.array_equal(self.weights[name], array), name
        self.weights[name] = array
        return name

    def ints(self, *values: int) -> str:
        """A constant vector of integers."""
        return self.keep("ints_" + "_".join(str(v) for v in values), np.array(values, np.int64))

    def scalar(self, value: float) -> str:
        """A constant number."""
        return self.keep(f"number_{value:g}", np.array(value, np.float32))

    def image(self, name: str = "x", channels: int = 3, size: Sequence[int | str] = ("H", "W")) -> str:
        """A float input [N, channels, *size]."""
        self.inputs.append(helper.make_tensor_value_info(name, FLOAT, ["N", channels, *size]))
        return name

    def answer(self, value: str, name: str = "y", shape: Sequence[int | str | None] | None = None) -> None:
        """Make a value an output of the model."""
        self.nodes.append(helper.make_node("Identity", [value], [name], f"output_{name}"))
        self.outputs.append(helper.make_tensor_value_info(name, FLOAT, shape))

    def model(self) -> onnx.ModelProto:
        """The model, as it is written."""
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "net", self.inputs, self.outputs, tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made

    # -------------------------------------------------------------------------------------------- layers

    def conv(
        self,
        x: str,
        name: str,
        cout: Axis,
        cin: Axis,
        kernel: Sequence[int] = (3, 3),
        *,
        group: int = 1,
        pad: bool = True,
        bias: bool = True,
        makes: bool = True,
        reads: bool = True,
        **attributes: Any,
    ) -> str:
        """Conv with W [cout, cin, *kernel]; `cin` is what one group reads."""
        fan = self.draw._full(cin) * int(np.prod(kernel))
        made, read = [0] * makes, [1] * reads
        inputs = [
            x,
            self.keep(
                f"{name}.weight",
                self.draw.weight(f"{name}.weight", (cout, cin, *kernel), makes=made, reads=read, fan=fan),
            ),
        ]
        if bias:
            inputs.append(self.keep(f"{name}.bias", self.draw.weight(f"{name}.bias", (cout,), makes=made)))
        if pad:
            dilation = attributes.get("dilations", [1] * len(kernel))
            sides = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
            attributes["pads"] = sides * 2
        return self.op("Conv", *inputs, kernel_shape=list(kernel), group=group, **attributes)

    def depthwise(self, x: str, name: str, channels: Axis, kernel: Sequence[int] = (3, 3), **attributes: Any) -> str:
        """Conv with a filter per channel."""
        size = self.draw.size(channels)
        return self.conv(x, name, channels, 1, kernel, group=size, reads=False, **attributes)

    def batchnorm(self, x: str, name: str, channels: Axis) -> str:
        """BatchNormalization with statistics far from the identity; a dead channel has no shift and mean zero."""
        parts = [("scale", 1.0, True), ("shift", 0.0, True), ("mean", 0.0, True), ("var", 1.0, False)]
        values = [
            self.keep(
                f"{name}.{part}",
                self.draw.weight(f"{name}.{part}", (channels,), makes=[0] * made, around=around),
            )
            for part, around, made in parts
        ]
        return self.op("BatchNormalization", x, *values)

    def conv_bn(self, x: str, name: str, cout: Axis, cin: Axis, kernel: Sequence[int] = (3, 3), **options: Any) -> str:
        """Conv without a bias, then BatchNormalization."""
        return self.batchnorm(self.conv(x, name, cout, cin, kernel, bias=False, **options), f"{name}.bn", cout)

    def linear(
        self, x: str, name: str, cin: Axis, cout: Axis, *, bias: bool = True, makes: bool = True, reads: bool = True
    ) -> str:
        """MatMul with W [cin, cout] and an Add."""
        values = self.draw.weight(
            f"{name}.weight", (cin, cout), makes=[1] * makes, reads=[0] * reads, fan=2 * self.draw._full(cin)
        )
        y = self.op("MatMul", x, self.keep(f"{name}.weight", values))
        if not bias:
            return y
        return self.op(
            "Add", y, self.keep(f"{name}.bias", self.draw.weight(f"{name}.bias", (cout,), makes=[0] * makes))
        )

    def layernorm(self, x: str, name: str, size: int) -> str:
        """LayerNormalization over the last axis, whose width stays."""
        scale = self.keep(f"{name}.scale", self.draw.weight(f"{name}.scale", (size,), around=1.0))
        shift = self.keep(f"{name}.shift", self.draw.weight(f"{name}.shift", (size,)))
        return self.op("LayerNormalization", x, scale, shift, axis=-1)

    def reshape(self, x: str, *axes: Axis) -> str:
        """Reshape to axes; 0 copies and -1 infers."""
        return self.op("Reshape", x, self.ints(*(a if isinstance(a, int) else self.draw.size(a) for a in axes)))

    def transpose(self, x: str, *perm: int) -> str:
        """Transpose."""
        return self.op("Transpose", x, perm=list(perm))

    def gelu(self, x: str) -> str:
        """GELU by Erf, as exporters write it."""
        inner = self.op("Add", self.op("Erf", self.op("Div", x, self.scalar(2**0.5))), self.scalar(1))
        return self.op("Mul", self.op("Mul", x, inner), self.scalar(0.5))

    def silu(self, x: str) -> str:
        """X times its Sigmoid."""
        return self.op("Mul", x, self.op("Sigmoid", x))

    def pooled(self, x: str) -> str:
        """Global average pooling of an image, as a vector."""
        return self.op("Flatten", self.op("GlobalAveragePool", x))
