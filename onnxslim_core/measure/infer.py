"""Onnx's inference for one node at a time, asked once per kind of node: networks repeat their blocks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import checker, defs, shape_inference

__all__ = ["Inference"]

_BLIND = frozenset(
    (
        *("Add", "And", "BatchNormalization", "Cast", "Concat", "Conv", "ConvTranspose", "Div", "Equal", "Gather"),
        *("Gemm", "Greater", "InstanceNormalization", "LayerNormalization", "Less", "MatMul", "Max", "Min", "Mod"),
        *("Mul", "Not", "Or", "PRelu", "Pow", "QuantizeLinear", "Sub", "Sum", "Transpose", "Where", "Xor"),
    )
)
"""Operators whose types and sizes never depend on the contents of an input."""

_PLAIN = frozenset((ir.AttributeType.FLOAT, ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.STRING))

_Kinds = tuple[onnx.TypeProto | None, ...]

_KNOWN: dict[Hashable, _Kinds] = {}
"""What onnx inferred, by all that it depends on; shared, so nobody changes it."""

_MOST_KNOWN = 20_000


class Inference:
    """What onnx infers for the outputs of single nodes.

    Args:
        model: Whose opsets count.
    """

    def __init__(self, model: ir.Model) -> None:
        imports = dict(model.graph.opset_imports)
        self._opset = imports.get("", imports.get("ai.onnx", 1))
        self._ir_version = model.ir_version
        self._imports = [onnx.OperatorSetIdProto(domain=d, version=v) for d, v in imports.items()]
        self._world = (model.ir_version, *sorted(imports.items()))
        self._schemas: dict[tuple[str, str], defs.OpSchema | None] = {}
        self._met: dict[Hashable, _Kinds] = {}
        self._bytes: dict[int, tuple[onnx.TypeProto, bytes]] = {}

    def schema(self, node: ir.Node) -> defs.OpSchema | None:
        """What onnx knows of an operator; None for a foreign one."""
        key = (node.domain, node.op_type)
        if node.overload:
            return None
        if key not in self._schemas:
            found = None
            domain = "" if node.domain == "ai.onnx" else node.domain
            version = next((i.version for i in self._imports if i.domain == node.domain), self._opset)
            if defs.has(node.op_type, domain=domain):
                try:
                    found = defs.get_schema(node.op_type, version, domain)
                except defs.SchemaError:
                    found = None
            self._schemas[key] = found
        return self._schemas[key]

    def outputs(
        self,
        node: ir.Node,
        kinds: Sequence[onnx.TypeProto | None],
        content: Callable[[ir.Value], np.ndarray | None],
    ) -> _Kinds:
        """The types of the outputs, None where nothing is inferred; they are shared and must not be changed.

        Args:
            node: Any.
            kinds: Of its inputs; None for an absent one.
            content: Gives the array of an input that is a small constant.
        """
        # this is asked of every node in every pass: nothing is made that is not needed, and no generator
        op_type, given = node.op_type, node.attributes.data
        attributes = tuple([_frozen(attr) for attr in given.values()]) if given else ()
        data: dict[int, np.ndarray] = {}
        if op_type not in _BLIND:
            for index, value in enumerate(node.inputs):
                if value is not None and (array := content(value)) is not None:
                    data[index] = array
        contents = _contents(data) if data else ()
        operator = op_type, node.domain, node.overload, tuple([bool(value.name) for value in node.outputs])
        key = operator, tuple(map(id, kinds)), attributes, contents
        found = self._met.get(key)
        if found is None:
            types = tuple([None if kind is None else self._bytes_of(kind) for kind in kinds])  # and their ids stay
            found = self._met[key] = self._known(
                (self._world, operator, types, attributes, contents), node, kinds, data
            )
        return found

    def _known(
        self, key: Hashable, node: ir.Node, kinds: Sequence[onnx.TypeProto | None], data: dict[int, np.ndarray]
    ) -> _Kinds:
        """What onnx infers, from the memory of all models."""
        if key not in _KNOWN:
            if len(_KNOWN) >= _MOST_KNOWN:
                _KNOWN.clear()
            schema = self.schema(node)
            refers = any(attr.is_ref() for attr in node.attributes.values())
            found = None if schema is None or refers else self._ask(schema, node, kinds, data)
            _KNOWN[key] = found or (None,) * len(node.outputs)
        return _KNOWN[key]

    def _ask(
        self, schema: defs.OpSchema, node: ir.Node, kinds: Sequence[onnx.TypeProto | None], data: dict[int, np.ndarray]
    ) -> _Kinds | None:
        proto = onnx.NodeProto(op_type=node.op_type, domain=node.domain)
        proto.input.extend("" if kind is None else f"i{index}" for index, kind in enumerate(kinds))
        proto.output.extend(f"o{index}" if value.name else "" for index, value in enumerate(node.outputs))
        proto.attribute.extend(ir.serde.serialize_attribute(attr) for attr in node.attributes.values())
        types = {f"i{index}": kind for index, kind in enumerate(kinds) if kind is not None}
        tensors = {f"i{index}": onnx.numpy_helper.from_array(array) for index, array in data.items()}
        try:
            found = shape_inference.infer_node_outputs(
                schema, proto, types, tensors, opset_imports=self._imports, ir_version=self._ir_version
            )
        except (shape_inference.InferenceError, checker.ValidationError, RuntimeError, KeyError, ValueError):
            return None  # a node that cannot be inferred is a node nothing is known of
        return tuple(found.get(f"o{index}") for index in range(len(node.outputs)))

    def _bytes_of(self, kind: onnx.TypeProto) -> bytes:
        """A type as something to look up; kept with it, so that its id stays its own."""
        known = self._bytes.get(id(kind))
        if known is None:
            known = self._bytes[id(kind)] = kind, kind.SerializeToString(deterministic=True)
        return known[1]


def _contents(data: Mapping[int, np.ndarray]) -> tuple[Hashable, ...]:
    return tuple([(index, array.dtype.str, array.shape, array.tobytes()) for index, array in data.items()])


def _frozen(attr: ir.Attr) -> Hashable | None:
    """An attribute as something to look up; None for a reference."""
    if attr.is_ref():
        return None
    kind = attr.type
    if kind in _PLAIN:
        return attr.name, kind, attr.value
    return bytes(ir.serde.serialize_attribute(attr).SerializeToString(deterministic=True))
