"""Graphs to protos, field by field.

onnx_ir's own writer raises on what is carried, renames shared tensors, adds value_info for every initializer and sorts
metadata, so only its serializers for the parts are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn

import onnx
import onnx_ir as ir

from onnxslim_core._carry import TRAINING_KEY, CarriedAttribute, CarriedType
from onnxslim_core._tensors import SparseTensor, embed, entries_into
from onnxslim_core._wellformed import quote
from onnxslim_core.errors import InvalidModel
from onnxslim_core.graph import noted, noted_for_file

__all__ = ["Put", "write", "write_node"]

logger = logging.getLogger(__name__)

_QUANTIZATION_KEY = "quant_parameter_tensor_names"  # where onnx_ir keeps it, in a value's meta
_FUNCTION_TYPES_SINCE = 10  # the IR version from which a function holds its own value_info
_DEVICES_SINCE = 11

Put = Callable[[ir.TensorProtocol, str, onnx.TensorProto], None]
"""How a tensor is written: (tensor, name, empty proto to fill)."""


def write(model: ir.Model, put: Put = embed, *, skip: Collection[int] = ()) -> onnx.ModelProto:
    """The proto of a model; the model is not changed.

    Args:
        model: The model.
        put: How an initializer is written; tensors in attributes are always embedded.
        skip: `id` of the tensors whose initializers in the main graph are left out, for a caller that writes them.

    Raises:
        InvalidModel: if an initializer has no value.
    """
    proto = onnx.ModelProto()
    version = model.ir_version
    inputs = {id(v) for v in model.graph.inputs}
    if version < 4 and any(id(v) not in inputs for v in model.graph.initializers.values()):
        version = 4  # before 4, every initializer is an input too
    proto.ir_version = version
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        if (value := getattr(model, name)) is not None:
            setattr(proto, name, value)
    _opsets(proto.opset_import, model.opset_imports)
    entries_into(proto.metadata_props, model.metadata_props)
    for configuration in model.device_configurations:
        proto.configuration.append(ir.serde.serialize_model_configuration(configuration))
    writer = _Writer(put, version)
    writer.graph(proto.graph, model.graph, skip)
    for function in model.functions.values():
        infos = writer.function(proto.functions.add(), function)
        if version < _FUNCTION_TYPES_SINCE:
            for info in infos:
                info.name = f"{function.domain}::{function.name}/{info.name}"
            proto.graph.value_info.extend(infos)
        else:
            proto.functions[-1].value_info.extend(infos)
    _training(model, proto)
    return proto


def write_node(node: ir.Node) -> onnx.NodeProto:
    """The proto of one node with its bodies and their weights, where onnx_ir's serializer raises on what is carried."""
    proto = onnx.NodeProto(**_plain_fields(node))
    _EMBEDDING.node(proto, node)
    return proto


def _training(model: ir.Model, proto: onnx.ModelProto) -> None:
    infos = [onnx.TrainingInfoProto.FromString(data) for data in model.graph.meta.get(TRAINING_KEY, ())]
    bound = {entry.key for t in infos for entry in (*t.initialization_binding, *t.update_binding)}
    own = {tensor.name for t in infos for tensor in t.algorithm.initializer}
    if bound <= own | model.graph.initializers.keys():
        proto.training_info.extend(infos)
    else:
        logger.warning("training information is left out, since initializers that it updates are gone")


def _opsets(protos: Any, imports: Mapping[str, int]) -> None:
    for domain, version in imports.items():
        protos.add(domain=domain, version=version)


class _Writer:
    """Writes the graphs of one model."""

    def __init__(self, put: Put, ir_version: int) -> None:
        self.put = put
        self.ir_version = ir_version

    def graph(self, proto: onnx.GraphProto, graph: ir.Graph, skip: Collection[int] = ()) -> None:
        if graph.name is not None:
            proto.name = graph.name
        if graph.doc_string is not None:
            proto.doc_string = graph.doc_string
        inputs = {id(v) for v in graph.inputs}
        for value in graph.inputs:
            self.value(proto.input.add(), value)
            self.annotation(proto, value)
        for value in graph.initializers.values():
            if value.const_value is None:
                raise InvalidModel(f"initializer {quote(str(value.name))} has no value")
            if id(value.const_value) not in skip:
                self.initializer(proto, value.const_value, str(value.name))
            if id(value) not in inputs:
                self.annotation(proto, value)
                if noted_for_file(value) or value.doc_string:
                    self.value(proto.value_info.add(), value)
        add = proto.node.add
        for node in graph:
            self.node(add(**_plain_fields(node)), node)
            for value in node.outputs:
                self.annotation(proto, value)
                if not value.is_graph_output() and _says_something(value):
                    self.value(proto.value_info.add(), value)
        for value in graph.outputs:
            self.value(proto.output.add(), value)
        entries_into(proto.metadata_props, graph.metadata_props)

    def initializer(self, proto: onnx.GraphProto, tensor: ir.TensorProtocol, name: str) -> None:
        if isinstance(tensor, SparseTensor):
            sparse = proto.sparse_initializer.add()
            sparse.ParseFromString(tensor.data)
            sparse.values.name = name
        else:
            self.put(tensor, name, proto.initializer.add())

    def annotation(self, proto: onnx.GraphProto, value: ir.Value) -> None:
        if names := noted(value).get(_QUANTIZATION_KEY):
            entry = proto.quantization_annotation.add(tensor_name=str(value.name))
            entries_into(entry.quant_parameter_tensor_names, names)

    def value(self, proto: onnx.ValueInfoProto, value: ir.Value) -> None:
        proto.name = value.name or ""
        if isinstance(value.type, CarriedType):
            proto.type.ParseFromString(value.type.data)
        elif value.type is not None:
            ir.serde.serialize_type_into(proto.type, value.type)
        elif value.shape is not None:
            proto.type.tensor_type.SetInParent()
        if value.shape is not None and not isinstance(value.type, CarriedType):
            ir.serde.serialize_shape_into(proto.type, value.shape)
        if value.doc_string is not None:
            proto.doc_string = value.doc_string
        entries_into(proto.metadata_props, noted_for_file(value))

    def node(self, proto: onnx.NodeProto, node: ir.Node) -> None:
        """Write what `_plain_fields` left."""
        if node.overload:
            proto.overload = node.overload
        if node.doc_string is not None:
            proto.doc_string = node.doc_string
        if entries := noted_for_file(node):
            entries_into(proto.metadata_props, entries)
        if attributes := node.attributes.data:
            for attr in attributes.values():
                self.attribute(proto.attribute.add(), attr)
        if self.ir_version >= _DEVICES_SINCE:
            for configuration in node.device_configurations:
                proto.device_configurations.append(ir.serde.serialize_node_device_configuration(configuration))

    def attribute(self, proto: onnx.AttributeProto, attr: ir.Attr) -> None:
        if attr.is_ref():
            ir.serde.serialize_reference_attribute_into(proto, attr)
            return
        value: Any = attr.value
        if isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], CarriedAttribute):
            value = value[0]
        if isinstance(value, CarriedAttribute):
            proto.ParseFromString(value.data)
            return
        if attr.type not in _OWN_KINDS:
            ir.serde.serialize_attribute_into(proto, attr)
            return
        proto.name = attr.name
        proto.type = attr.type.value  # type: ignore[assignment]
        if attr.doc_string:
            proto.doc_string = attr.doc_string
        if attr.type == ir.AttributeType.GRAPH:
            self.graph(proto.g, value)
        elif attr.type == ir.AttributeType.GRAPHS:
            for body in value:
                self.graph(proto.graphs.add(), body)
        elif attr.type == ir.AttributeType.TENSOR:
            embed(value, value.name or "", proto.t)
        else:
            for tensor in value:
                embed(tensor, tensor.name or "", proto.tensors.add())

    def function(self, proto: onnx.FunctionProto, function: ir.Function) -> list[onnx.ValueInfoProto]:
        """Write a function but for its value_info, which is returned."""
        proto.name = function.name
        proto.domain = function.domain
        if function.overload:
            proto.overload = function.overload
        if function.doc_string is not None:
            proto.doc_string = function.doc_string
        _opsets(proto.opset_import, function.opset_imports)
        entries_into(proto.metadata_props, function.metadata_props)
        proto.input.extend(str(v.name) for v in function.inputs)
        proto.output.extend(str(v.name) for v in function.outputs)
        for attr in function.attributes.values():
            if attr.value is None:
                proto.attribute.append(attr.name)
            else:
                self.attribute(proto.attribute_proto.add(), attr)
        for node in function:
            self.node(proto.node.add(**_plain_fields(node)), node)
        values = [*function.inputs, *(v for node in function for v in node.outputs)]
        infos = [onnx.ValueInfoProto() for _ in filter(_says_something, values)]
        for info, value in zip(infos, filter(_says_something, values), strict=True):
            self.value(info, value)
        return infos


_EMBEDDING = _Writer(embed, _DEVICES_SINCE)
"""Writes single nodes; it holds nothing."""

_OWN_KINDS = (
    ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS, ir.AttributeType.TENSOR, ir.AttributeType.TENSORS,
)  # fmt: skip


def _plain_fields(node: ir.Node) -> dict[str, Any]:
    """The fields that nearly every node has; a proto that is made with them takes a third of the time."""
    found: dict[str, Any] = {
        "op_type": node.op_type,
        "input": ["" if v is None else v.name or _refuse_nameless() for v in node.inputs],
        "output": [v.name or "" for v in node.outputs],
    }
    if node.domain:
        found["domain"] = node.domain
    if node.name:
        found["name"] = node.name
    return found


def _refuse_nameless() -> NoReturn:
    raise InvalidModel("a value that is read has no name")


def _says_something(value: ir.Value) -> bool:
    known = value.type is not None or value.shape is not None or noted_for_file(value) or value.doc_string
    return bool(value.name and known)
