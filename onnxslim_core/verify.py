"""What a valid graph means, as a table of checks; each says what is wrong, none mends anything.

The structural checks are linear in the nodes and look at objects as well as names: onnx_ir keeps values by identity, a
file keeps them by name, and a graph is sound only where both say the same. The last check lets onnx infer types and
shapes on a proto without its large weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from onnxslim_core import _emit
from onnxslim_core._tensors import SparseTensor, embed
from onnxslim_core.graph import bodies, label_of

__all__ = ["CHECKS", "STRUCTURE", "Check", "Interface", "Port", "infers", "out_of_order", "verify"]

_INLINE_BELOW = 1024
"""Initializers of fewer bytes keep their values when shapes are inferred, since shapes may be computed from them."""
_MOST = 20
"""Problems listed per check."""

_Owner = ir.Graph | ir.Function


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output.

    Attributes:
        name: Its name.
        type: Its type as text, such as `Tensor(FLOAT)`.
        shape: Its declared dims: an int, a symbol, or None where a dim is unknown; None where the rank is unknown.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Interface:
    """What callers of a model rely on.

    Attributes:
        inputs: In order.
        outputs: In order.
        infers: False where type and shape inference fails for the model to begin with; then it proves nothing.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    infers: bool = True

    @classmethod
    def of(cls, model: ir.Model, *, may_infer: bool | None = None) -> Interface:
        """Record the interface of a model; whether it infers is found out where the caller does not say."""
        inputs, outputs = (tuple(map(_port, values)) for values in (model.graph.inputs, model.graph.outputs))
        return cls(inputs, outputs, not infers(model) if may_infer is None else may_infer)

    def problems(self, model: ir.Model) -> list[str]:
        """What a model changed of this interface."""
        found = []
        for kind, before, values in (
            ("input", self.inputs, model.graph.inputs),
            ("output", self.outputs, model.graph.outputs),
        ):
            after = tuple(map(_port, values))
            if [p.name for p in before] != [p.name for p in after]:
                found.append(f"{kind}s were {_names(before)} and are {_names(after)}")
                continue
            found += [f"{kind} was {b} and is {a}" for b, a in zip(before, after, strict=True) if b != a]
        return found


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"'{p.name}'" for p in ports) or "none"


def _port(value: ir.Value) -> Port:
    shape = None if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    return Port(str(value.name), repr(value.type), shape)


def _scopes(model: ir.Model) -> Iterator[tuple[_Owner, tuple[_Owner, ...]]]:
    """Every graph with the graphs around it, outermost first."""
    pending: list[tuple[_Owner, tuple[_Owner, ...]]] = [(model.graph, ())]
    pending += [(function, ()) for function in model.functions.values()]
    while pending:
        graph, around = pending.pop()
        yield graph, around
        inner = (*around, graph)
        for node in graph:
            if node.attributes.data:
                pending.extend((body, inner) for body in bodies(node))


def _initializers(graph: _Owner) -> list[ir.Value]:
    return list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []


def _defined(graph: _Owner) -> Iterator[ir.Value]:
    """Every value that lives in a graph, once per place; an initializer that is an input counts once."""
    yield from graph.inputs
    inputs = set(graph.inputs)
    yield from (value for value in _initializers(graph) if value not in inputs)
    for node in graph:
        for value in node.outputs:
            if value.name != "":
                yield value


def out_of_order(model: ir.Model) -> list[str]:
    """Each node comes after what it reads."""
    found: list[str] = []
    seen: set[ir.Node] = set()

    def walk(graph: _Owner) -> None:
        for node in graph:
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer not in seen and value is not None:
                    found.append(f"{label_of(node)} comes before {label_of(producer)}, whose '{value.name}' it reads")
            for body in bodies(node):
                walk(body)
            seen.add(node)

    walk(model.graph)
    for function in model.functions.values():
        walk(function)
    return found


def single_assignment(model: ir.Model) -> list[str]:
    """Each name is defined once in its graph, and each value once at all."""
    found: list[str] = []
    values: set[ir.Value] = set()
    for graph, _ in _scopes(model):
        names: set[str | None] = set()
        for value in _defined(graph):
            if value.name in names:
                found.append(f"'{value.name}' is defined twice in graph '{graph.name}'")
            elif value in values:
                found.append(f"the value '{value.name}' lives in two graphs")
            names.add(value.name)
            values.add(value)
    return found


def no_dangling(model: ir.Model) -> list[str]:
    """Every value that is read or returned is defined somewhere, has a name, and every weight has data."""
    found: list[str] = []
    scopes = list(_scopes(model))
    defined = {value for graph, _ in scopes for value in _defined(graph)}
    for graph, _ in scopes:
        for node in graph:
            found += [
                f"{label_of(node)} reads '{value.name}', which nothing in the model defines"
                for value in node.inputs
                if value is not None and value not in defined
            ]
        found += [f"output '{v.name}' is defined by nothing" for v in graph.outputs if v not in defined]
        found += [f"initializer '{v.name}' has no data" for v in _initializers(graph) if v.const_value is None]
    found += [f"a value of type {value.type} has no name" for value in defined if not value.name]
    return found


def captures_intact(model: ir.Model) -> list[str]:
    """Looked up by name from the inside out, as a runtime does it, every read finds the value it means."""
    found: list[str] = []
    tables: dict[_Owner, dict[str | None, ir.Value]] = {}
    for graph, around in _scopes(model):
        table = tables[graph] = {value.name: value for value in _defined(graph)}
        outer = [tables[above] for above in reversed(around)]
        for node in graph:
            for value in node.inputs:
                if value is None or table.get(value.name) is value:
                    continue
                meant = next((t[value.name] for t in (table, *outer) if value.name in t), None)
                if meant is None:
                    found.append(f"{label_of(node)} reads '{value.name}' from a graph that is not around it")
                elif meant is not value:
                    found.append(f"{label_of(node)} reads '{value.name}', but another value of that name is nearer")
        found += [
            f"'{value.name}' is returned by a graph that does not make it"
            for value in graph.outputs
            if table.get(value.name) is not value
        ]
    return found


def unique_names(model: ir.Model) -> list[str]:
    """What a body makes or holds has no name of the graphs around it; sibling bodies may repeat each other."""
    found: list[str] = []
    names: dict[_Owner, set[str | None]] = {}
    for graph, around in _scopes(model):
        names[graph] = {value.name for value in _defined(graph)}
        if around:
            made = names[graph] - {value.name for value in graph.inputs}
            for above in around:
                found += [f"'{name}' is defined in a body and in a graph around it" for name in made & names[above]]
    return sorted(found, key=str)


def weights_fit(model: ir.Model) -> list[str]:
    """An initializer's declared type and shape are those of its tensor, and it is registered under its name."""
    found: list[str] = []
    for graph, _ in _scopes(model):
        if not isinstance(graph, ir.Graph):
            continue
        inputs = set(graph.inputs)
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if name != value.name:
                found.append(f"initializer '{value.name}' is registered as '{name}'")
            if tensor is None or value in inputs:
                continue
            shape = tensor.shape.numpy()
            if value.shape is not None and value.shape.is_static() and value.shape.numpy() != shape:
                found.append(f"initializer '{name}' is declared as {value.shape} and holds {list(shape)}")
            if value.dtype is not None and value.dtype != tensor.dtype:
                found.append(f"initializer '{name}' is declared as {value.dtype} and holds {tensor.dtype}")
    return found


def infers(model: ir.Model, bare: bytes | None = None) -> list[str]:
    """Onnx's checker and strict type and shape inference accept it; operators of other domains are not judged.

    Args:
        model: The model; it is not changed.
        bare: What was written of it but for the weights of its main graph, where somebody has.
    """
    try:
        proto = _skeleton(model, bare)
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
        RuntimeError,
        ValueError,
        TypeError,
    ) as err:
        return [" ".join(str(err).split())[:500]]
    return []


def _skeleton(model: ir.Model, bare: bytes | None) -> onnx.ModelProto:
    """The model with the large weights of its main graph as inputs, which have a type and a shape but no data."""
    inputs = set(model.graph.inputs)
    weights = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and not isinstance(value.const_value, SparseTensor)
    }
    if bare is None:
        proto = _emit.write(model, skip={id(tensor) for tensor in weights.values()})
    else:
        proto = onnx.ModelProto.FromString(bare)
    outputs = {info.name for info in proto.graph.output}
    kept = [info for info in proto.graph.value_info if info.name not in outputs]
    del proto.graph.value_info[:]
    for name, tensor in weights.items():
        if tensor.nbytes < _INLINE_BELOW:
            embed(tensor, name, proto.graph.initializer.add())
        elif model.graph.initializers[name] not in inputs:
            info = proto.graph.input.add(name=name)
            info.type.tensor_type.elem_type = tensor.dtype.value
            for dim in tensor.shape.numpy():
                info.type.tensor_type.shape.dim.add(dim_value=dim)
    large = {info.name for info in proto.graph.input}
    proto.graph.value_info.extend(info for info in kept if info.name not in large)
    return proto


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the table.

    Attributes:
        name: How a report calls it.
        run: Lists what is wrong.
    """

    name: str
    run: Callable[[ir.Model], list[str]]


STRUCTURE = (
    Check("sorted", out_of_order),
    Check("single assignment", single_assignment),
    Check("no dangling value", no_dangling),
    Check("captures intact", captures_intact),
    Check("unique names", unique_names),
    Check("weights fit", weights_fit),
)
"""The checks that look at the graph alone; linear in the nodes."""
CHECKS = (*STRUCTURE, Check("types infer", infers))


def verify(model: ir.Model, interface: Interface | None = None, bare: bytes | None = None) -> list[str]:
    """Everything that is wrong with a model, one line each; empty where it is sound.

    Args:
        model: The model; it is not changed.
        interface: What must have stayed; None leaves that out.
        bare: As in `infers`.
    """
    found: list[str] = []
    for check in CHECKS:
        if check.run is infers and (found or (interface is not None and not interface.infers)):
            continue  # a broken structure has no proto worth inferring; nor proves a failure what failed before
        problems = infers(model, bare) if check.run is infers else check.run(model)
        found += [f"{check.name}: {problem}" for problem in problems[:_MOST]]
        if len(problems) > _MOST:
            found.append(f"{check.name}: and {len(problems) - _MOST} more")
    if interface is not None:
        found += [f"interface: {problem}" for problem in interface.problems(model)]
    return found
