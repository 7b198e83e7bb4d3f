"""Broken and odd models through the exact recipe: nothing but a refusal in one line, or equal answers.

    python bench/fuzz.py --seed 0 --count 300 [--kind edits|flips|cuts] [--keep FOLDER] [MODEL.onnx ...]

Every case is a model that is damaged in one of three ways: *edits* change the graph as an exporter with a bug would
(inputs swapped, nodes dropped or doubled, sizes and types changed, other operators and opsets), *flips* change bytes,
*cuts* end the file early or take a piece out. Cases run in a process of their own with bounded time and memory, so that
a crash is an outcome like any other. Where onnxruntime runs the damaged model with its optimizer off, its answers are
compared with those of the result; what the program under test says about itself is not asked. Without models the
network of the demo and a few small ones with control flow, functions, strings and shared weights are damaged.

Outcomes: `refused` (a SlimError of one line), `equal`, `runs nowhere` (onnxruntime declines the damaged model),
`rolled back` (equal, but a pass did wrong and the net caught it); and the failures `wrong`, `bigger`, `bug` (any other
exception), `crash`, `slow`. Exits with 1 where there is a failure. Writes fuzz.json.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import resources
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from _common import write_result
from onnx import TensorProto, numpy_helper

SECONDS = 60
"""Of one case; the machine may be busy."""
BYTES = 6 * 2**30
"""Of address space, of one process; onnxruntime reserves much more than it uses."""
FAILURES = ("wrong", "bigger", "bug", "crash", "slow")
KINDS = ("edits", "flips", "cuts")
TOLERANCE = 1e-4

_BODY = """<ir_version: 8, opset_import: ["" : 17]>"""
SMALL = {
    "branches": _BODY
    + """ g (float[2,3] x, bool c) => (float[2,3] y) <float[3] w = {1, -2, 3}, float[3] v = {1, -2, 3}> {
        h = Relu(x) i = Identity(h) s = Shape(i) r = Reshape(i, s)
        y = If (c) <then_branch = t () => (float[2,3] p) { q = Add(r, w) p = Mul(q, v) },
                    else_branch = e () => (float[2,3] p) { q = Sub(h, v) p = Identity(q) }> }""",
    "functions": """<ir_version: 8, opset_import: ["" : 17, "my" : 1]>
        g (float[n,4] x) => (float[n,4] y) { a = my.twice <k = 0.3> (x) b = my.twice <k = 0.5> (a) y = Identity(b) }
        <domain: "my", opset_import: ["" : 17]> twice <k> (a) => (c) {
            b = LeakyRelu <alpha: float = @k> (a) z = Constant <value_float = 0.5> () s = CastLike(z, b)
            c = Mul(b, s) }""",
    "strings": _BODY
    + """ g (float[4] x) => (float[4] y, string[2] t) { s = Constant <value_strings = ["a", "b"]> () t = Identity(s)
        k = Constant <value_ints = [1, 3]> () q = SplitToSequence <axis = 0> (x, k)
        i = Constant <value_int = 1> () a = SequenceAt(q, i) p = Constant <value_ints = [1, 0]> ()
        b = Pad(a, p) y = Relu(b) }""",
    "sizes": _BODY
    + """ g (float[n,3,8] x) => (float[n,m] y) <int64 one = {1}, int64[1] zero = {0}, float k = {2}> {
        s = Shape(x) d = Gather(s, one) u = Unsqueeze(d, zero) v = Slice(s, zero, u2) u2 = Add(zero, one1)
        one1 = Unsqueeze(one, zero) m1 = Neg(one1) c = Concat <axis = 0> (v, m1) r = Reshape(x, c)
        e = Expand(k, u) f = ReduceSum(e) y = Mul(r, f) }""",
}


def sources(paths: list[Path]) -> dict[str, bytes]:
    """The models to damage, by name."""
    if paths:
        return {path.name: path.read_bytes() for path in paths}
    found = {name: onnx.parser.parse_model(text).SerializeToString() for name, text in SMALL.items()}
    folder = resources.files("onnxslim_core").joinpath("demo")
    found |= {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name.endswith(".onnx")}
    return found


# ---------------------------------------------------------------------------------------------------- damage

Edit = Callable[[onnx.ModelProto, random.Random], None]


def _value_names(model: onnx.ModelProto) -> list[str]:
    graph = model.graph
    names = [v.name for v in graph.input] + [t.name for t in graph.initializer]
    return [*names, *(name for node in graph.node for name in node.output if name)]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def _any_node(model: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    return rng.choice([*_nodes(model.graph), *(n for f in model.functions for n in f.node)])


def _rewire(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*_value_names(model), "", "nowhere"])


def _swap_inputs(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    names = list(node.input)
    rng.shuffle(names)
    del node.input[:]
    node.input.extend(names)


def _drop_node(model: onnx.ModelProto, rng: random.Random) -> None:
    del model.graph.node[rng.randrange(len(model.graph.node))]


def _bypass(model: onnx.ModelProto, rng: random.Random) -> None:
    node = _any_node(model, rng)
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:], node.input[1:], node.output[1:]


def _double_node(model: onnx.ModelProto, rng: random.Random) -> None:
    index = rng.randrange(len(model.graph.node))
    twin = onnx.NodeProto.FromString(model.graph.node[index].SerializeToString())
    for place, name in enumerate(twin.output):
        twin.output[place] = f"{name}_twin" if rng.random() < 0.9 else name
    model.graph.node.insert(index + 1, twin)
    if rng.random() < 0.5 and twin.output:
        model.graph.output.add(name=twin.output[0])


def _output_inside(model: onnx.ModelProto, rng: random.Random) -> None:
    name = rng.choice(_value_names(model))
    if name not in {v.name for v in model.graph.output}:
        model.graph.output.add(name=name)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    chosen = [n for n in _nodes(model.graph) if n.attribute]
    if not chosen:
        return
    node = rng.choice(chosen)
    index = rng.randrange(len(node.attribute))
    attribute = node.attribute[index]
    if rng.random() < 0.2:
        del node.attribute[index]
    elif attribute.type == onnx.AttributeProto.INT:
        attribute.i = rng.choice((-1, 0, 1, 2, 3, 7, -(2**63), 2**63 - 1, attribute.i + 1))
    elif attribute.type == onnx.AttributeProto.INTS and attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((-1, 0, 1, 2, 9, 2**62))
    elif attribute.type == onnx.AttributeProto.FLOAT:
        attribute.f = rng.choice((0.0, -0.0, -1.0, 1e30, float("nan"), float("inf")))
    elif attribute.type == onnx.AttributeProto.STRING:
        attribute.s = rng.choice((b"", b"SAME_UPPER", b"VALID", b"\xff\xfe", b"reflect"))


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    others = "Relu Neg Add Sub Mul Div Concat Transpose Reshape Shape Cast Softmax MatMul Gemm Conv Dropout Bernoulli"
    others += " Sqrt Squeeze Flatten Identity Expand Gather Slice Split BatchNormalization MaxPool ReduceSum Nonsense"
    node = _any_node(model, rng)
    node.op_type = rng.choice(others.split())
    if rng.random() < 0.1:
        node.domain = rng.choice(("ai.onnx", "com.microsoft", "nowhere"))


def _weight(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    index = rng.randrange(len(model.graph.initializer))
    tensor = model.graph.initializer[index]
    choice = rng.randrange(7)
    if choice == 0:
        tensor.data_type = rng.randrange(24)
    elif choice == 1 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 2, 2**40))
    elif choice == 2:
        tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
    elif choice == 3:
        del model.graph.initializer[index]
    elif choice == 4:
        model.graph.initializer.add().CopyFrom(tensor)
    elif tensor.data_type == TensorProto.FLOAT:
        array = np.array(numpy_helper.to_array(tensor))
        array[rng.random() < np.random.default_rng(rng.getrandbits(32)).random(array.shape)] = rng.choice(
            (0.0, -0.0, float("nan"), float("inf"), 1e-40, 3e38, 1.0)
        )
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _dead_rows(model: onnx.ModelProto, rng: random.Random) -> None:
    """Whole filters zero or alike: what `remove_idle` looks for."""
    floats = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.dims]
    for tensor in rng.sample(floats, min(len(floats), 3)):
        array = np.array(numpy_helper.to_array(tensor))
        moved = np.moveaxis(array, rng.randrange(array.ndim), 0)
        for row in range(moved.shape[0]):
            if rng.random() < 0.5:
                moved[row] = 0 if rng.random() < 0.6 else moved[0]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def _feedable(model: onnx.ModelProto, rng: random.Random) -> None:
    for tensor in model.graph.initializer:
        if rng.random() < 0.5:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))


def _declared(model: onnx.ModelProto, rng: random.Random) -> None:
    value = rng.choice([*model.graph.input, *model.graph.output, *model.graph.value_info])
    kind = value.type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = rng.choice((1, 7, 10, 11, 9, 6))
    elif kind.shape.dim:
        dim = rng.choice(kind.shape.dim)
        if rng.random() < 0.3:
            dim.dim_param = rng.choice(("n", "m", ""))
        else:
            dim.dim_value = rng.choice((-1, 0, 1, 2, 3, 5, 2**40))


def _stale(model: onnx.ModelProto, rng: random.Random) -> None:
    for name in _value_names(model):
        if rng.random() < 0.2:
            shape = [rng.choice((1, 2, 3, "n")) for _ in range(rng.randrange(4))]
            model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _order(model: onnx.ModelProto, rng: random.Random) -> None:
    nodes = list(model.graph.node)
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _names(model: onnx.ModelProto, rng: random.Random) -> None:
    for node in _nodes(model.graph):
        if rng.random() < 0.3:
            node.name = rng.choice(("", "n", "a/b:0", "\u65e5\u672c", " ", node.op_type))


def _versions(model: onnx.ModelProto, rng: random.Random) -> None:
    if rng.random() < 0.3:
        model.ir_version = rng.choice((0, 1, 3, 4, 7, 13, 99))
    elif model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 9, 11, 13, 18, 21, 99))


EDITS: tuple[Edit, ...] = (
    *(_rewire, _swap_inputs, _drop_node, _bypass, _double_node, _output_inside, _attribute, _operator, _weight),
    *(_dead_rows, _feedable, _declared, _stale, _order, _names, _versions),
)


def edited(data: bytes, rng: random.Random) -> bytes:
    """One to three edits of the graph."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        # the edit before may have left no place for this one, and external data is not there
        with contextlib.suppress(ValueError, IndexError, TypeError, KeyError, onnx.checker.ValidationError):
            rng.choice(EDITS)(model, rng)
    return model.SerializeToString()


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed; half of the time near the ends, where the graph is and not the weights."""
    damaged = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        near = min(len(damaged), 2000)
        at = rng.randrange(len(damaged))
        if rng.random() < 0.5:
            at = rng.randrange(near) if rng.random() < 0.5 else len(damaged) - 1 - rng.randrange(near)
        damaged[at] = rng.randrange(256) if rng.random() < 0.5 else damaged[at] ^ (1 << rng.randrange(8))
    return bytes(damaged)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end, or a piece in the middle, is gone."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.6 else data[:at] + data[at + rng.randrange(1, 200) :]


DAMAGE = {"edits": edited, "flips": flipped, "cuts": cut}


# ---------------------------------------------------------------------------------------------------- one case


def _open(data: bytes) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _feeds(session: Any, seed: int) -> dict[str, Any]:
    rng, kinds = np.random.default_rng(seed), {"tensor(float)": np.float32, "tensor(double)": np.float64}
    kinds |= {
        "tensor(int64)": np.int64,
        "tensor(int32)": np.int32,
        "tensor(bool)": np.bool_,
        "tensor(float16)": np.float16,
    }
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) and 0 <= size < 4096 else 2 for size in value.shape]
        dtype = np.dtype(kinds.get(value.type.removeprefix("tensor(").removesuffix(")"), "f4"))
        drawn = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feeds[value.name] = np.asarray(drawn, dtype)
    return feeds


def _off(expected: list[Any], found: list[Any]) -> float:
    """Largest difference over the largest value; infinite where the form differs."""
    worst = 0.0
    for a, b in zip(expected, found, strict=True):
        if not isinstance(a, np.ndarray):
            worst = max(worst, 0.0 if str(a) == str(b) else np.inf)
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return np.inf
        if a.dtype.kind != "f":
            worst = max(worst, 0.0 if np.array_equal(a, b) else np.inf)
            continue
        usable = np.isfinite(a)
        if not np.array_equal(a[~usable], b[~usable], equal_nan=True) or not np.isfinite(b[usable]).all():
            return np.inf
        wide, other = a[usable].astype(np.float64), b[usable].astype(np.float64)
        if wide.size:
            worst = max(worst, float(np.abs(wide - other).max() / (np.abs(wide).max() or 1.0)))
    return worst


def _is_random(data: bytes) -> bool:
    random_ops = (b"Bernoulli", b"RandomNormal", b"RandomUniform", b"Multinomial", b"Dropout")
    return any(name in data for name in random_ops)


def judge(data: bytes) -> tuple[str, str]:
    """The outcome of one damaged model, and what there is to say about it."""
    from onnxslim_core.errors import SlimError
    from onnxslim_core.model import load
    from onnxslim_core.pipeline import compress

    try:
        load(data).to_proto()
        result = compress(data, measure_latency=False)
    except SlimError as err:
        return ("refused", "") if "\n" not in str(err) else ("bug", f"more than one line: {err!r}")
    except MemoryError:
        return "refused", "not enough memory"
    made = result.model.to_proto().SerializeToString()
    taken = [f"{s.name}: {s.reason}" for s in result.report.steps if s.outcome == "rolled back"]
    try:
        session = _open(data)
        runs = [(feeds := _feeds(session, seed), session.run(None, feeds)) for seed in range(3)]
    except Exception:  # onnxruntime's exception classes are not public
        return "runs nowhere", ""
    if len(made) > 1.01 * len(load(data).to_proto().SerializeToString()) + 8:
        return "bigger", f"{len(data)} to {len(made)} bytes"
    if _is_random(data):
        return "equal", "random"
    try:
        after = _open(made)
        off = max(_off(expected, after.run(None, feeds)) for feeds, expected in runs)
    except Exception as err:
        return "wrong", f"the result does not run: {str(err)[:300]}"
    if off > TOLERANCE:
        return "wrong", f"off by {off:.3g}"
    return ("rolled back", taken[0][:200]) if taken else ("equal", "")


def _worker(channel: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # onnxruntime warns of declared shapes on its own
    while (data := channel.recv()) is not None:
        try:
            channel.send(judge(data))
        except BaseException as err:
            at = traceback.extract_tb(err.__traceback__)[-1]
            said = " ".join(str(err).split())[:200]
            channel.send(("bug", f"{type(err).__name__} at {Path(at.filename).name}:{at.lineno}: {said}"))


class Bench:
    """A process that judges one case after another, and a new one where it died."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("spawn")
        self.process: Any = None

    def judge(self, data: bytes) -> tuple[str, str]:
        """The outcome of a case, also where its process does not survive it."""
        if self.process is None:
            self.channel, theirs = self.context.Pipe()
            self.process = self.context.Process(target=_worker, args=(theirs,), daemon=True)
            self.process.start()
            theirs.close()
        self.channel.send(data)
        try:
            if self.channel.poll(SECONDS):
                found: tuple[str, str] = self.channel.recv()
                return found
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            return "crash", f"the process ended with {code}"
        self.process.kill()
        self.process = None
        return "slow", f"more than {SECONDS} s"

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.channel.send(None)
            self.process.join(10)


def crashes_alone(data: bytes) -> bool:
    """Whether onnxruntime itself crashes on the damaged model: then the crash is not ours."""
    code = os.fork()
    if code == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with contextlib.suppress(BaseException):
            session = _open(data)
            for seed in range(3):
                session.run(None, _feeds(session, seed))
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(code, 0)[1])


def main() -> int:
    """Damage, judge, count, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300, help="cases of each model and kind")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--keep", type=Path, help="write the models that fail into this folder")
    options = parser.parse_args()
    counts: dict[str, Counter[str]] = {}
    found: list[dict[str, object]] = []
    said: Counter[str] = Counter()
    bench = Bench()
    for name, data in sources(options.models).items():
        for kind in options.kind or KINDS:
            tally = counts.setdefault(f"{name} {kind}", Counter())
            for number in range(options.count):
                damaged = DAMAGE[kind](data, random.Random(f"{options.seed} {name} {kind} {number}"))
                outcome, note = bench.judge(damaged)
                if outcome == "crash" and crashes_alone(damaged):
                    outcome, note = "runs nowhere", "onnxruntime crashes on the model as given"
                tally[outcome] += 1
                if note:
                    said[f"{outcome}: {note}"] += 1
                if outcome in FAILURES:
                    found.append({"model": name, "kind": kind, "number": number, "outcome": outcome, "note": note})
                    print(f"{name} {kind} {number}: {outcome}: {note}", flush=True)
                    if options.keep is not None:
                        options.keep.mkdir(parents=True, exist_ok=True)
                        Path(options.keep, f"{Path(name).stem}-{kind}-{number}.onnx").write_bytes(damaged)
            print(f"{name} {kind}: " + ", ".join(f"{n} {outcome}" for outcome, n in tally.most_common()), flush=True)
    bench.close()
    payload = {"seed": options.seed, "count": options.count, "outcomes": counts, "failures": found}
    write_result("fuzz", {**payload, "said": dict(said.most_common(40))})
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
