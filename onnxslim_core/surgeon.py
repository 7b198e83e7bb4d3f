"""The border with onnx-graphsurgeon: its graphs in and out, through protos.

That library drops metadata, doc strings, quantization annotations and more without a word, and crashes on some types.
What it would drop is said in one warning; what it would crash on, or change without a word, is refused by name before
it sees it.

A user's function from graph to graph becomes a pass by `as_pass`. The model's own metadata and those of its inputs and
outputs go around that library; what it drops besides is on record, and only where the function changed something.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir

from onnxslim_core import _carry, _emit
from onnxslim_core._wellformed import Limits, quote
from onnxslim_core.errors import DataError, InvalidModel, ModelError, RecipeError, SlimError, UnsupportedModel, told
from onnxslim_core.graph import all_nodes
from onnxslim_core.rewrite import Change, Context, Kind, Pass, weight_bytes

__all__ = ["as_pass", "from_ir", "to_ir"]

logger = logging.getLogger(__name__)

_ATTR = onnx.AttributeProto
_ATTRIBUTES = {
    _ATTR.FLOAT, _ATTR.INT, _ATTR.STRING, _ATTR.TENSOR, _ATTR.GRAPH, _ATTR.FLOATS, _ATTR.INTS, _ATTR.STRINGS,
}  # fmt: skip
"""The kinds of attributes that it keeps."""
_LISTS = {_ATTR.FLOATS: "floats", _ATTR.INTS: "ints", _ATTR.STRINGS: "strings"}
_TYPES = frozenset(
    getattr(onnx.TensorProto, name)
    for name in (
        "FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "INT8", "INT16",
        "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL", "STRING", "COMPLEX64", "COMPLEX128",
    )
)  # fmt: skip
"""Element types that it writes as it read them, even after their values were looked at."""
_DEFAULT_IR_VERSION = 10
"""For a graph that does not say one: onnx would write its newest, which a runtime of the same day may not read."""

_said: set[str] = set()


def to_ir(graph: Any) -> ir.Model:
    """The onnx_ir model of an `onnx_graphsurgeon.Graph`, which is not changed.

    Args:
        graph: The graph; its nodes need not be sorted.

    Raises:
        InvalidModel: if the graph cannot be written, or is no valid model.
    """
    import onnx_graphsurgeon as gs
    from onnx_graphsurgeon.util.exception import OnnxGraphSurgeonException

    try:
        with _quiet():
            proto = gs.export_onnx(graph, do_type_check=False, opset_imports=_imports(graph))
    except (OnnxGraphSurgeonException, AssertionError, AttributeError, KeyError, TypeError, ValueError) as err:
        reason = next((line for line in str(err).splitlines() if line.strip()), type(err).__name__)
        raise InvalidModel(f"the onnx-graphsurgeon graph cannot be written: {reason[:200]}") from err
    if graph.ir_version is None:
        proto.ir_version = _DEFAULT_IR_VERSION
    for function in proto.functions:
        _one_standard_domain(function.opset_import)
    return _carry.from_proto(proto, Limits())


def from_ir(model: ir.Model) -> Any:
    """An `onnx_graphsurgeon.Graph` of a model, which is not changed; warns of what that library drops.

    Raises:
        UnsupportedModel: if the model holds what that library crashes on or changes without a word.
    """
    proto = _emit.write(model)
    lost = _lost(proto, model)
    if lost and (text := ", ".join(lost)) not in _said:
        _said.add(text)
        logger.warning("onnx-graphsurgeon drops from this model: %s", text)
    return _imported(proto)


def _imported(proto: onnx.ModelProto) -> Any:
    """The graph of a proto, which it takes over.

    Raises:
        UnsupportedModel: as `from_ir`.
    """
    import onnx_graphsurgeon as gs

    for graph in _graphs(proto):
        _refuse(graph)
    for function in proto.functions:
        if function.overload:
            raise UnsupportedModel(f"onnx-graphsurgeon cannot hold the overload of function {quote(function.name)}")
        _refuse_nodes(function.node)
    with _quiet():
        return gs.import_onnx(proto)


def _quiet() -> Any:
    """A context in which that library does not print to stdout."""
    from onnx_graphsurgeon.logger import G_LOGGER

    return G_LOGGER.suppress()


def _imports(graph: Any) -> list[onnx.OperatorSetIdProto]:
    """The opset imports of a graph: its own, and version 1 of every other domain that a node uses.

    That library would add to the list it holds, which may be the user's proto, and would take `ai.onnx` for a domain
    of its own.
    """
    own = graph.import_domains
    found = {e.domain: e.version for e in own} if own is not None else {"": graph.opset}
    nodes = [*graph.nodes, *(node for body in graph.subgraphs(recursive=True) for node in body.nodes)]
    for node in nodes:
        domain = node.domain or ""
        if domain not in ("", "ai.onnx"):
            found.setdefault(domain, 1)
    if not {"", "ai.onnx"} & found.keys() and any((node.domain or "") in ("", "ai.onnx") for node in nodes):
        found[""] = graph.opset
    return [onnx.OperatorSetIdProto(domain=domain, version=version) for domain, version in found.items()]


def _one_standard_domain(imports: Any) -> None:
    """Drop the import of `ai.onnx` in version 1 that is added beside the one of the same domain's other name."""
    if any(entry.domain == "" for entry in imports):
        kept = [entry for entry in imports if entry.domain != "ai.onnx"]
        del imports[:]
        imports.extend(kept)


def _graphs(proto: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and all bodies, those in functions too."""
    pending = [proto.graph]
    pending += [attr.g for function in proto.functions for node in function.node for attr in node.attribute
                if attr.type == _ATTR.GRAPH]  # fmt: skip
    while pending:
        graph = pending.pop()
        yield graph
        pending += [attr.g for node in graph.node for attr in node.attribute if attr.type == _ATTR.GRAPH]


def _refuse(graph: onnx.GraphProto) -> None:
    for info in (*graph.input, *graph.output, *graph.value_info):
        kind = info.type.WhichOneof("value")
        if kind == "sequence_type" and info.type.sequence_type.elem_type.WhichOneof("value") == "tensor_type":
            continue
        if kind not in (None, "tensor_type"):
            raise UnsupportedModel(f"onnx-graphsurgeon cannot hold the type of {quote(info.name)} ({kind})")
    for tensor in graph.initializer:
        _refuse_tensor(tensor, f"initializer {quote(tensor.name)}")
    _refuse_nodes(graph.node)


def _refuse_tensor(tensor: onnx.TensorProto, what: str) -> None:
    if tensor.data_type not in _TYPES:
        kind = onnx.TensorProto.DataType.Name(tensor.data_type)
        raise UnsupportedModel(f"onnx-graphsurgeon cannot hold {what} of type {kind}")


def _refuse_nodes(nodes: Sequence[onnx.NodeProto]) -> None:
    for node in nodes:
        where = f"of node {quote(node.name or next(iter(node.output), '?'))}"
        if node.overload:
            raise UnsupportedModel(f"onnx-graphsurgeon cannot hold the overload {where}")
        for attr in node.attribute:
            what = f"attribute {quote(attr.name)} {where}"
            if attr.type not in _ATTRIBUTES:
                kind = _ATTR.AttributeType.Name(attr.type)
                raise UnsupportedModel(f"onnx-graphsurgeon cannot hold {what} of type {kind}")
            if attr.ref_attr_name:
                continue
            if attr.type in _LISTS and not getattr(attr, _LISTS[attr.type]):
                raise UnsupportedModel(f"onnx-graphsurgeon cannot write {what}, an empty list")
            if attr.type == _ATTR.TENSOR:
                _refuse_tensor(attr.t, what)
            texts = [attr.s] if attr.type == _ATTR.STRING else attr.strings
            try:
                for text in texts:
                    text.decode("utf-8")
            except UnicodeDecodeError as err:
                raise UnsupportedModel(f"onnx-graphsurgeon cannot read {what}, which is not UTF-8") from err


def _lost(proto: onnx.ModelProto, model: ir.Model) -> list[str]:
    """What of a model that library drops, in words."""
    graphs = list(_graphs(proto))
    nodes = [node for graph in graphs for node in graph.node] + [n for f in proto.functions for n in f.node]
    infos = [info for graph in graphs for info in (*graph.input, *graph.output, *graph.value_info)]
    tensors = [t for graph in graphs for t in graph.initializer]
    parts: list[Any] = [proto, *graphs, *nodes, *infos, *tensors, *proto.functions]
    bodies = [body for body in graphs if body is not graphs[0]]
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {info.name for graph in graphs for info in graph.output}
    weights = {t.name for t in proto.graph.initializer}
    found = {
        "metadata": any(part.metadata_props for part in parts),
        "doc strings": any(p.doc_string for p in [proto, *nodes, *infos, *tensors]),
        "the model's domain or version": bool(proto.domain or proto.model_version),
        "quantization annotations": any(graph.quantization_annotation for graph in graphs),
        "denotations": any(_has_denotation(info.type) for info in infos),
        "training information": bool(proto.training_info),
        "device configurations": bool(proto.configuration),
        "unused initializers": any(name not in read for name in weights),
        "inputs that have a default": any(v.is_initializer() for v in model.graph.inputs),
        "the sharing of weights that several bodies read": any(
            name in weights for body in bodies for node in body.node for name in node.input
        ),
    }
    return [name for name, is_lost in found.items() if is_lost]


def _has_denotation(proto: onnx.TypeProto) -> bool:
    return bool(proto.denotation) or any(dim.denotation for dim in proto.tensor_type.shape.dim)


# ---------------------------------------------------------------------------------------------------- passes
_OPTIONS = (bool, int, float, str)
_TAKEN = ("exact", "name", "kind", "run")


def as_pass(name: str, function: Callable[..., Any]) -> type[Pass]:
    """The pass of a function that takes an `onnx_graphsurgeon.Graph` and returns one, or changes it and returns None.

    Its keyword-only parameters, annotated and with defaults, are the options. It is taken for lossy, and judged like
    any lossy pass, unless it is declared exact: by an attribute `exact` of the function that is true, or by
    `exact = true` in the recipe. Then its answers have to be the same, or it is taken back.

    Args:
        name: In a recipe and in the report.
        function: Called with the graph and the options.

    Raises:
        RecipeError: if the function cannot be a pass.
    """
    fields: list[Any] = [("exact", bool, dataclasses.field(default=bool(getattr(function, "exact", False))))]
    try:
        parameters = list(inspect.signature(function).parameters.values())
        hints = typing.get_type_hints(function)
    except (NameError, TypeError, ValueError) as err:
        raise RecipeError(f"'{name}' is no pass: {err}") from err
    given = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    options = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(given) + len(options) < len(parameters) or len(given) < 1 or any(p.default is p.empty for p in given[1:]):
        raise RecipeError(f"'{name}' is no pass", "a function (graph, *, option: type = default) -> graph")
    for option in options:
        hint, default = hints.get(option.name), option.default
        if option.name in _TAKEN:
            raise RecipeError(f"an option of '{name}' is called '{option.name}', which every pass has", "rename it")
        if typing.get_origin(hint) is list:  # what options hold does not change: the function gets a list of its own
            hint = tuple.__class_getitem__((*typing.get_args(hint), ...))
            default = tuple(default) if isinstance(default, list) else default
        if default is option.empty or not _is_option(hint) or default.__hash__ is None:
            allowed = "bool, int, float, str, or a list or tuple of one of these"
            raise RecipeError(f"option '{option.name}' of '{name}' needs a type and a default", allowed)
        fields.append((option.name, hint, dataclasses.field(default=default)))

    def kind(self: Any) -> Kind:
        return Kind.ALGEBRAIC if self.exact else Kind.LOSSY

    def run(self: Any, model: ir.Model, context: Context) -> list[Change]:
        chosen = {option.name: getattr(self, option.name) for option in options}
        for key, value in chosen.items():
            if isinstance(value, tuple) and typing.get_origin(hints[key]) is list:
                chosen[key] = list(value)
        return _run(name, lambda graph: function(graph, **chosen), model)

    space = {"name": name, "kind": property(kind), "run": run}
    made = dataclasses.make_dataclass("SurgeonPass", fields, namespace=space, frozen=True, kw_only=True)
    made.__doc__ = function.__doc__  # afterwards: a class without gets a signature there
    return typing.cast("type[Pass]", made)


def _is_option(hint: Any) -> bool:
    if typing.get_origin(hint) not in (None, tuple, typing.Union, types.UnionType):
        return False
    parts = [part for part in typing.get_args(hint) if part is not Ellipsis] or [hint]
    return all(part in (*_OPTIONS, type(None)) for part in parts)


def _run(name: str, function: Callable[[Any], Any], model: ir.Model) -> list[Change]:
    """Put what the function makes of the model in its place."""
    try:
        graph, untouched = (_imported(_emit.write(model)) for _ in range(2))
    except UnsupportedModel as err:
        return [Change(name, (), "run", reason=str(err), guard="surgeon_can_hold_it")]
    found = _called(name, function, graph)
    try:
        made = to_ir(found)
    except ModelError as err:
        raise InvalidModel(f"'{name}' left a broken graph: {err}", err.hint) from err
    if _bytes(made) == _bytes(to_ir(untouched)):
        return []
    lost = _lost_besides(model)
    before = sum(1 for _ in all_nodes(model.graph)), weight_bytes(model)
    _keep_around(model, made)
    model.graph, model.ir_version = made.graph, made.ir_version
    model.functions.clear()
    model.functions.update(made.functions)
    after = sum(1 for _ in all_nodes(model.graph)), weight_bytes(model)
    changes = [Change(name, (), f"ran: {before[0]} to {after[0]} nodes", bytes_saved=before[1] - after[1])]
    if lost:
        changes.append(Change(name, (), f"onnx-graphsurgeon dropped {', '.join(lost)}", details={"lost": tuple(lost)}))
    return changes


def _called(name: str, function: Callable[[Any], Any], graph: Any) -> Any:
    """What the user's function makes of a graph; a failure of any kind is theirs, said in one line."""
    import onnx_graphsurgeon as gs

    try:
        found = function(graph)
    except SlimError:
        raise
    except (Exception, SystemExit) as err:
        raise DataError(f"'{name}' fails when it is run: {told(err)}") from err
    found = graph if found is None else found
    if not isinstance(found, gs.Graph):
        raise DataError(f"'{name}' returned a {type(found).__name__}, not an onnx_graphsurgeon.Graph")
    return found


def _bytes(model: ir.Model) -> bytes:
    return bytes(_emit.write(model).SerializeToString(deterministic=True))


def _lost_besides(model: ir.Model) -> list[str]:
    """What of a model that library drops and `_keep_around` does not bring back, in words."""
    proto = _emit.write(model)
    for field in ("doc_string", "domain", "model_version", "metadata_props", "training_info", "configuration"):
        proto.ClearField(field)
    proto.graph.ClearField("doc_string")
    proto.graph.ClearField("metadata_props")
    for info in (*proto.graph.input, *proto.graph.output):
        info.ClearField("doc_string")
        info.ClearField("metadata_props")
    return _lost(proto, model)


def _keep_around(model: ir.Model, made: ir.Model) -> None:
    """Bring back what the old graph says of itself and of its inputs and outputs."""
    old, new = model.graph, made.graph
    new.name, new.doc_string = old.name, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    known = {value.name: value for value in (*old.inputs, *old.outputs)}
    for value in (*new.inputs, *new.outputs):
        if (twin := known.get(value.name)) is not None:
            value.doc_string = twin.doc_string
            value.metadata_props.update(twin.metadata_props)
