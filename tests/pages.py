r"""Pages of cases: what a pass does and refuses, in ONNX text that is both documentation and test.

`tests/passes/<name>.md` belongs to the pass `<name>`. Prose is free; every `## title` starts a case, which holds
fenced blocks. A title of the form `refused: <guard>` or `refused: <guard>: what is special` says which guard refuses.

    ## Removes an Identity between two nodes
    ```before
    g (float[N,3] x) => (float[N,3] y) {
      a = Relu(x)
      b = Identity(a)
      y = Tanh(b)
    }
    ```
    ```after
    g (float[N,3] x) => (float[N,3] y) { a = Relu(x)  y = Tanh(a) }
    ```

    ## refused: finite_scale: a running variance of zero
    ```before
    g (float[N,3,8,8] x) => (float[N,4,6,6] y)
      <float[4,3,3,3] W, float[4] scale, float[4] bias, float[4] mean, float[4] var>
    { c = Conv(x, W)  y = BatchNormalization(c, scale, bias, mean, var) }
    ```
    ```arrays
    W: normal 0.1
    var: constant 0
    ```
    ```options
    max_scale = 100.0
    ```

Blocks:
- `before` (required): the graph, in the language of `onnx.parser` (onnx/docs/Syntax.md). A text that does not begin
  with `<` gets the header `<ir_version: 8, opset_import: ["": 17]>`. Functions follow the graph as usual.
- `after`: what the pass makes of it; the same header rule. Left out: the graph stays as it is, which is what a
  refusal means. A refusal may still have an `after`, where something else in the graph is done.
- `arrays`: one line per weight or input, `name: distribution`. A name declared in `<...>` with a type but no value is
  a weight: it becomes an initializer, filled from the seed of its name. Distributions: `normal [std]`,
  `uniform low high`, `integers low high` (high is not included), `constant value`, `values a b c ...`. Without a
  line: floats are standard normal (inputs: hitting +-0, large and tiny as well), integers lie in [0, 4), booleans are
  random. For an input of the graph the line gives what is fed.
- `options`: TOML, the options of the pass.
- `notes`: TOML. `float64 = "why"` leaves out the check in float64, `numbers = "why"` every run of the model,
  `guard = "why"` the witness of the guard, `checker = "why"` the checker's shape inference; each with its reason. `growth = 100` lets the file grow by so many bytes.

What a case checks: the graph becomes `after`; the model answers the same in onnxruntime, as far as the pass's kind
promises (exact passes only), in float64 as well; it does not get bigger, names of nodes aside; a second run changes
nothing; the verifier is content; for a refusal, that the guard is on record, and that with this guard switched off
something of this fails on this very case (its witness).

Graphs are compared by structure: walking from the outputs, op types, domains, attributes and wiring must be the same;
names of inner values and nodes and the order of nodes do not matter, names and types of inputs and outputs do. Of an
initializer dtype and shape are compared, and its values where `after` writes them out or where its name is that of a
weight of `before` (which is then expected untouched).
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from tests import oracles

FOLDER = Path(__file__).parent / "passes"
HEADER = '<ir_version: 8, opset_import: ["": 17]>\n'

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_BLOCKS = ("before", "after", "arrays", "options", "notes")


@dataclass(frozen=True)
class Case:
    """One case of a page.

    Attributes:
        page: The pass.
        title: The heading.
        guard: The guard that refuses, or empty.
        before: The model, weights filled in.
        after: The expected model; equal to `before` where nothing is to change.
        written: Names of the initializers whose values `after` is compared in.
        arrays: Distribution by name.
        options: Of the pass.
        notes: What is left out and why.
    """

    page: str
    title: str
    guard: str
    before: onnx.ModelProto
    after: onnx.ModelProto
    written: frozenset[str]
    arrays: Mapping[str, str]
    options: Mapping[str, Any]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def feeds(self, seed: int = 0) -> list[dict[str, np.ndarray]]:
        """Inputs at up to three sizes, drawn as the case says."""
        return oracles.runnable_feeds(self.before, seed, arrange=self._arrange)

    def _arrange(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {
            name: draw(name, array.shape, array.dtype, self.arrays[name]) if name in self.arrays else array
            for name, array in feed.items()
        }


def names_of_pages() -> list[str]:
    """The passes that have a page."""
    return sorted(path.stem for path in FOLDER.glob("*.md"))


def cases(page: str) -> list[Case]:
    """The cases of a page.

    Raises:
        ValueError: where the page is malformed, with the title of the case.
    """
    text = (FOLDER / f"{page}.md").read_text(encoding="utf-8")
    return list(read_cases(page, text))


def read_cases(page: str, text: str) -> Iterator[Case]:
    """The cases in the text of a page."""
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        blocks = dict(_BLOCK.findall(body))
        if unknown := set(blocks) - set(_BLOCKS):
            raise ValueError(f"{page}.md: {title}: unknown block {sorted(unknown)}, allowed: {', '.join(_BLOCKS)}")
        if "before" not in blocks:
            continue
        try:
            yield _read_case(page, title.strip(), blocks)
        except (ValueError, KeyError, parser.ParseError, onnx.checker.ValidationError) as err:
            raise ValueError(f"{page}.md: {title}: {err}") from err


def _read_case(page: str, title: str, blocks: Mapping[str, str]) -> Case:
    arrays = {}
    for line in blocks.get("arrays", "").splitlines():
        if line.strip():
            name, _, how = line.partition(":")
            arrays[name.strip()] = how.strip()
    before, weights, _ = _read_model(blocks["before"], arrays)
    after, ours, literal = _read_model(blocks.get("after", blocks["before"]), arrays)
    known = {v.name for v in before.graph.input} | weights | ours
    if unused := set(arrays) - known:
        raise ValueError(f"arrays: no input or weight is called {sorted(unused)}")
    refused = re.match(r"refused: (\w+)", title)
    return Case(
        page=page,
        title=title,
        guard=refused[1] if refused else "",
        before=before,
        after=after,
        written=frozenset(literal | (ours & weights)),
        arrays=arrays,
        options=tomllib.loads(blocks.get("options", "")),
        notes=tomllib.loads(blocks.get("notes", "")),
    )


def _read_model(text: str, arrays: Mapping[str, str]) -> tuple[onnx.ModelProto, set[str], set[str]]:
    """The model of a block, the names of its seeded weights, and the names of those written out."""
    text = text.strip()
    model = parser.parse_model(text if text.startswith("<") else HEADER + text)
    weights: set[str] = set()
    literal: set[str] = set()
    for graph in _graphs(model.graph):
        made = {name for node in graph.node for name in node.output} | {v.name for v in graph.input}
        literal |= {t.name for t in graph.initializer}
        inner = []
        for value in graph.value_info:
            if value.name in made:
                inner.append(value)
                continue
            weights.add(value.name)
            graph.initializer.append(_weight(value, arrays.get(value.name, "")))
        del graph.value_info[:]
        graph.value_info.extend(inner)
    onnx.checker.check_model(model)
    return model, weights, literal


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attr in node.attribute:
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                yield from _graphs(body)


def _weight(value: onnx.ValueInfoProto, how: str) -> onnx.TensorProto:
    tensor = value.type.tensor_type
    shape = [d.dim_value for d in tensor.shape.dim]
    if not all(d.HasField("dim_value") for d in tensor.shape.dim):
        raise ValueError(f"weight '{value.name}' needs numbers as its shape")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return numpy_helper.from_array(draw(value.name, shape, dtype, how), value.name)


def draw(name: str, shape: Sequence[int], dtype: np.dtype[Any], how: str = "") -> np.ndarray:
    """Values for a named weight or input; the name is the seed.

    Raises:
        ValueError: if the distribution is not known.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    kind, *words = how.split() or [""]
    numbers = [float(word) for word in words]
    if kind == "":
        if dtype.kind in "fV":
            return rng.standard_normal(shape).astype(dtype)
        return (rng.integers(0, 2, shape) if dtype.kind == "b" else rng.integers(0, 4, shape)).astype(dtype)
    if kind == "normal":
        return (rng.standard_normal(shape) * (numbers or [1.0])[0]).astype(dtype)
    if kind == "uniform":
        return rng.uniform(numbers[0], numbers[1], tuple(shape)).astype(dtype)
    if kind == "integers":
        return rng.integers(int(numbers[0]), int(numbers[1]), shape).astype(dtype)
    if kind == "constant":
        return np.full(shape, numbers[0]).astype(dtype)
    if kind == "values":
        return np.resize(np.array(numbers), shape).astype(dtype)
    raise ValueError(f"unknown distribution '{how}' of '{name}'")


# Structural comparison


def assert_same_structure(expected: onnx.ModelProto, actual: onnx.ModelProto, written: frozenset[str]) -> None:
    """Fail unless both graphs are the same up to names of inner values and nodes and the order of nodes.

    Args:
        expected: The graph a page asks for.
        actual: The graph a pass made.
        written: Initializers of `expected` whose values count as well.
    """
    oracles.assert_same_interface(expected, actual)
    opsets = [{i.domain or "ai.onnx": i.version for i in m.opset_import} for m in (expected, actual)]
    assert opsets[0] == opsets[1], f"opsets are {opsets[1]} instead of {opsets[0]}"
    captured = _Walk(written).graphs(expected.graph, actual.graph, {})
    assert not captured, f"these come from nowhere: {captured}"


class _Scope:
    """Names of one graph, and of the graphs around it through `outer`."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.inputs = {v.name: i for i, v in enumerate(graph.input)}
        self.weights = {t.name: t for t in graph.initializer}
        self.made = {name: (node, i) for node in graph.node for i, name in enumerate(node.output) if name}


class _Walk:
    """A walk along two graphs at once, from the outputs."""

    def __init__(self, written: frozenset[str]) -> None:
        self.written = written

    def graphs(
        self, expected: onnx.GraphProto, actual: onnx.GraphProto, outer: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """Compare two graphs; `outer` pairs the names around them. Returns the pairs of names that they capture."""
        counts = [Counter(f"{n.domain}::{n.op_type}" for n in g.node) for g in (expected, actual)]
        assert counts[0] == counts[1], f"nodes are {dict(counts[1])} instead of {dict(counts[0])}"
        assert len(expected.input) == len(actual.input), "another number of inputs"
        assert len(expected.output) == len(actual.output), "another number of outputs"
        sizes = [sorted((t.data_type, tuple(t.dims)) for t in g.initializer) for g in (expected, actual)]
        assert sizes[0] == sizes[1], f"initializers are {sizes[1]} instead of {sizes[0]}"
        scopes = _Scope(expected), _Scope(actual)
        pairs: dict[str, str] = dict(outer)
        captured: list[tuple[str, str]] = []
        found: list[tuple[onnx.NodeProto, onnx.NodeProto]] = []
        todo = [(e.name, a.name) for e, a in zip(expected.output, actual.output, strict=True)]
        seen: set[int] = set()
        while todo or found:
            if not todo:
                todo.extend(self._attributes(*found.pop(), pairs))
                continue
            want, got = todo.pop()
            assert bool(want) == bool(got), f"an input is absent in one of the graphs: '{want}', '{got}'"
            if not want:
                continue
            if want in pairs:
                assert pairs[want] == got, f"'{want}' is read as '{got}' and as '{pairs[want]}'"
                continue
            pairs[want] = got
            if not any(want in names for names in (scopes[0].made, scopes[0].inputs, scopes[0].weights)):
                captured.append((want, got))
                continue
            todo.extend(self._value(want, got, scopes, seen, found))
        assert len(set(pairs.values())) == len(pairs), "two values of the expected graph are one in the actual graph"
        return captured

    def _value(
        self,
        want: str,
        got: str,
        scopes: tuple[_Scope, _Scope],
        seen: set[int],
        found: list[tuple[onnx.NodeProto, onnx.NodeProto]],
    ) -> list[tuple[str, str]]:
        """Compare what makes two values; returns the pairs of values to look at next."""
        ours, theirs = scopes
        if want in ours.weights:
            assert got in theirs.weights, f"weight '{want}' is '{got}' here, which is no initializer"
            self._weights(ours.weights[want], theirs.weights[got])
        if want in ours.inputs:
            assert ours.inputs[want] == theirs.inputs.get(got), f"input '{want}' is '{got}' here"
            return []
        if want in ours.weights:
            return []
        (node, index), (other, other_index) = ours.made[want], theirs.made.get(got, (None, -1))
        assert other is not None, f"'{want}' is made by {node.op_type}, '{got}' by no node"
        assert (node.op_type, index) == (other.op_type, other_index), (
            f"'{want}' is output {index} of {node.op_type}, '{got}' output {other_index} of {other.op_type}"
        )
        if id(node) in seen:
            return []
        seen.add(id(node))
        found.append((node, other))
        inputs = [_trimmed(n.input) for n in (node, other)]
        assert len(inputs[0]) == len(inputs[1]), f"{node.op_type} '{want}' has inputs {inputs[1]}, not {inputs[0]}"
        outputs = [_trimmed(n.output) for n in (node, other)]
        assert [bool(o) for o in outputs[0]] == [bool(o) for o in outputs[1]], f"'{want}': outputs differ in presence"
        return [*zip(*inputs, strict=True), *((a, b) for a, b in zip(*outputs, strict=True) if a)]

    def _weights(self, want: onnx.TensorProto, got: onnx.TensorProto) -> None:
        found = (got.data_type, tuple(got.dims))
        assert (want.data_type, tuple(want.dims)) == found, f"weight '{want.name}' is {found} here"
        if want.name in self.written:
            a, b = numpy_helper.to_array(want), numpy_helper.to_array(got)
            assert np.array_equal(a, b) or a.tobytes() == b.tobytes(), f"weight '{want.name}' has other values"

    def _attributes(self, want: onnx.NodeProto, got: onnx.NodeProto, pairs: Mapping[str, str]) -> list[tuple[str, str]]:
        ours, theirs = ({a.name: a for a in n.attribute} for n in (want, got))
        assert set(ours) == set(theirs), f"{want.op_type} has attributes {sorted(theirs)} instead of {sorted(ours)}"
        captured: list[tuple[str, str]] = []
        for name, attr in ours.items():
            other = theirs[name]
            if attr.type == onnx.AttributeProto.GRAPH:
                captured.extend(self.graphs(attr.g, other.g, pairs))
                continue
            a, b = onnx.helper.get_attribute_value(attr), onnx.helper.get_attribute_value(other)
            if isinstance(a, onnx.TensorProto):
                a, b = ((t.data_type, numpy_helper.to_array(t).tolist()) for t in (a, b))
            assert a == b, f"attribute '{name}' of {want.op_type} is {b} instead of {a}"
        return captured


def _trimmed(names: Sequence[str]) -> list[str]:
    """Trailing absent names do not count."""
    found = list(names)
    while found and not found[-1]:
        found.pop()
    return found
