"""Independent judges: do two models answer the same?

onnxruntime runs both models with its optimizer off, on one thread, on the same seeded inputs, at several sizes of
every symbolic dim. Nothing of the package is called here but the names of the kinds, so that a fault in the package
cannot hide itself. For algebra that must hold beyond float32's rounding, `lift` turns a model into float64 and
`onnx.reference` runs it: lift first, rewrite the lifted model, then compare (weights rounded to float32 on the way
could never agree to 1e-9).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxslim_core.rewrite import Kind

Feeds = Mapping[str, np.ndarray]
Outputs = list[Any]

RELATIVE = 1e-5
"""Largest max|d| / max|ref| of two float32 models that are equal in real arithmetic."""
FLOAT64 = 1e-9
"""The same for models lifted to float64."""
SMALL = 200
"""Nodes up to which a model is judged in float64 too."""

_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


def session(model: onnx.ModelProto, *, optimize: bool = False) -> ort.InferenceSession:
    """A single-threaded CPU session; with the optimizer off, since that rewrites some graphs wrongly (T43)."""
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto, feeds: Feeds, *, optimize: bool = False) -> Outputs:
    """The outputs of a model by onnxruntime, in the order of the graph."""
    return list(session(model, optimize=optimize).run(None, dict(feeds)))


def fed_inputs(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that a caller has to feed: those without a default."""
    defaults = {t.name for t in model.graph.initializer} | {t.values.name for t in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in defaults]


def random_array(type_: int, shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Seeded values of a type. Floats hit +-0, large, tiny and negative; integers lie in [0, 4)."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_)
    if type_ in (*_FLOATS, onnx.TensorProto.BFLOAT16):
        flat = rng.standard_normal(int(np.prod(shape)))
        special = np.array([0.0, -0.0, 30.0, -30.0, 1e-4, -1e-4])
        if flat.size >= 4 * special.size:
            places = rng.choice(flat.size, special.size, replace=False)
            flat[places] = special
        return flat.reshape(shape).astype(dtype)
    if type_ == onnx.TensorProto.BOOL:
        return rng.integers(0, 2, shape).astype(bool)
    if type_ == onnx.TensorProto.STRING:
        return rng.choice(np.array(["a", "b", "ab", ""], dtype=object), shape)
    return rng.integers(0, 4, shape).astype(dtype)


def _sizes(model: onnx.ModelProto) -> Iterator[dict[str, int]]:
    """A ladder of sizes for the symbolic dims: different dims get different sizes, a batch stays small."""
    batch: dict[str, None] = {}
    other: dict[str, None] = {}
    for value in fed_inputs(model):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if not dim.HasField("dim_value"):
                name = dim.dim_param or f"{value.name}:{axis}"
                (batch if axis == 0 and name not in other else other)[name] = None
    if not batch and not other:
        yield {}
        return
    for first, base in zip(itertools.cycle((2, 1, 3)), (3, 6, 9, 1, 16, 32, 64, 224), strict=False):
        sizes = {name: base + index for index, name in enumerate(other)} if base < 16 else dict.fromkeys(other, base)
        yield sizes | {name: first + index for index, name in enumerate(batch)}


def make_feeds(model: onnx.ModelProto, seed: int, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Seeded inputs at given sizes of the symbolic dims."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in fed_inputs(model):
        tensor = value.type.tensor_type
        shape = [
            d.dim_value if d.HasField("dim_value") else sizes[d.dim_param or f"{value.name}:{axis}"]
            for axis, d in enumerate(tensor.shape.dim)
        ]
        feeds[value.name] = random_array(tensor.elem_type, shape, rng)
    return feeds


def runnable_feeds(
    model: onnx.ModelProto,
    seed: int = 0,
    wanted: int = 3,
    arrange: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda feed: feed,
) -> list[dict[str, np.ndarray]]:
    """Up to three seeded inputs of different sizes that the model runs on; one where nothing is symbolic.

    Args:
        model: Has to run.
        seed: Of the values.
        wanted: How many.
        arrange: May replace values, keeping names, shapes and types.

    Raises:
        AssertionError: if it runs on none, since then nothing would be proven.
    """
    judge, found, reason = session(model), [], ""
    for sizes in _sizes(model):
        feeds = arrange(make_feeds(model, seed, sizes))
        try:
            judge.run(None, feeds)
        except Exception as err:  # onnxruntime's own exception classes are not public
            reason = str(err)
            continue
        found.append(feeds)
        if len(found) == wanted:
            break
    assert found, f"the model runs at no size tried: {reason}"
    return found


def assert_equal(
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    kind: Kind,
    feeds: Feeds | Sequence[Feeds] | None = None,
    seed: int = 0,
    tolerance: float | None = None,
) -> None:
    """Fail unless both models answer the same, as far as `kind` promises.

    Args:
        before: The reference.
        after: The candidate.
        kind: BITWISE: every bit, the sign of zero included. ALGEBRAIC: max|d| / max|ref| at most 1e-5 or four times
            the reference's noise floor; small float64 models by `onnx.reference` at 1e-9. LOSSY: `tolerance`.
        feeds: Inputs; seeded ones of up to three sizes where None.
        seed: Of those inputs and of the noise floor.
        tolerance: For LOSSY, the declared bound on max|d| / max|ref|.
    """
    assert_same_interface(before, after)
    chosen = runnable_feeds(before, seed) if feeds is None else [feeds] if isinstance(feeds, Mapping) else list(feeds)
    if kind is Kind.ALGEBRAIC and _is_float64(before) and len(before.graph.node) <= SMALL:
        for feed in chosen:
            compare(before, reference(before, feed), reference(after, feed), FLOAT64)
        return
    reference_session, candidate = session(before), session(after)
    for feed in chosen:
        expected = list(reference_session.run(None, dict(feed)))
        actual = list(candidate.run(None, dict(feed)))
        if kind is Kind.BITWISE:
            compare(before, expected, actual, None)
            continue
        bound = tolerance if tolerance is not None else RELATIVE
        assert kind is Kind.ALGEBRAIC or tolerance is not None, "a lossy pass declares its bound"
        floor = noise_floor(reference_session, feed, expected, seed) if kind is Kind.ALGEBRAIC else 0.0
        compare(before, expected, actual, max(bound, 4 * floor))


def assert_equal_in_float64(
    before: onnx.ModelProto,
    transform: Callable[[onnx.ModelProto], onnx.ModelProto],
    feeds: Sequence[Feeds] | None = None,
    seed: int = 0,
) -> None:
    """Fail unless `transform` keeps the answers of the model, lifted to float64, to 1e-9 by `onnx.reference`."""
    lifted = lift(before)
    after = transform(_copy(lifted))
    assert_same_interface(lifted, after)
    for feed in runnable_feeds(before, seed) if feeds is None else feeds:
        wide = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in feed.items()}
        compare(lifted, reference(lifted, wide), reference(after, wide), FLOAT64)


def assert_not_bigger(before: onnx.ModelProto, after: onnx.ModelProto, allowed: int = 0) -> None:
    """Fail if the candidate takes more bytes than the reference, and `allowed` more; names of nodes do not count."""
    sizes = []
    for model in (before, after):
        bare = _copy(model)
        _clear_node_names(bare.graph)
        sizes.append(bare.ByteSize())
    grown = sizes[1] - sizes[0]
    assert grown <= allowed, f"grew by {grown} bytes, at most {allowed} are allowed"


def _clear_node_names(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        node.ClearField("name")
        for attr in node.attribute:
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                _clear_node_names(body)


def assert_same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Fail unless the names, order, types and declared shapes of inputs to feed and of outputs are the same."""

    def described(values: Sequence[onnx.ValueInfoProto]) -> list[tuple[str, bytes]]:
        return [(v.name, v.type.SerializeToString(deterministic=True)) for v in values]

    assert described(fed_inputs(before)) == described(fed_inputs(after)), "the inputs changed"
    assert described(before.graph.output) == described(after.graph.output), "the outputs changed"


def noise_floor(judge: ort.InferenceSession, feed: Feeds, expected: Outputs, seed: int) -> float:
    """What one unit in the last place of every float input does to the answer, as max|d| / max|ref|."""
    rng = np.random.default_rng(seed + 1)
    moved = {
        name: np.asarray(np.nextafter(a, np.where(rng.integers(0, 2, a.shape), np.inf, -np.inf).astype(a.dtype)))
        if a.dtype in (np.float16, np.float32, np.float64)
        else a
        for name, a in feed.items()
    }
    floors = [0.0]
    for ref, got in zip(expected, judge.run(None, moved), strict=True):
        if isinstance(ref, np.ndarray) and ref.dtype.kind == "f" and ref.shape == got.shape:
            floors.append(_distance(ref, got))
    return max(f for f in floors if np.isfinite(f))


def reference(model: onnx.ModelProto, feed: Feeds) -> Outputs:
    """The outputs by the slow evaluator written in numpy that comes with onnx."""
    return list(ReferenceEvaluator(model).run(None, dict(feed)))


def lift(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that computes in float64 wherever it computed in float32."""
    lifted = _copy(model)
    _lift_message(lifted)
    return lifted


def _lift_message(message: Any) -> None:
    if isinstance(message, onnx.TensorProto):
        if message.data_type == onnx.TensorProto.FLOAT:
            wide = numpy_helper.from_array(numpy_helper.to_array(message).astype(np.float64), message.name)
            message.CopyFrom(wide)
        return
    if isinstance(message, onnx.TypeProto.Tensor):
        if message.elem_type == onnx.TensorProto.FLOAT:
            message.elem_type = onnx.TensorProto.DOUBLE
        return
    if isinstance(message, onnx.NodeProto) and message.op_type == "Constant":
        _widen_constant(message)
    if isinstance(message, onnx.AttributeProto) and message.name in ("to", "dtype") and message.i == 1:
        message.i = onnx.TensorProto.DOUBLE
        return
    for field, content in message.ListFields():
        if field.message_type is None:
            continue
        for part in content if isinstance(content, Sequence) or hasattr(content, "add") else [content]:
            _lift_message(part)


def _widen_constant(node: onnx.NodeProto) -> None:
    """Constant's value_float and value_floats are float32 by definition: say them as tensors."""
    for attr in node.attribute:
        if attr.name in ("value_float", "value_floats"):
            value = np.asarray(attr.f if attr.name == "value_float" else list(attr.floats), dtype=np.float64)
            attr.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(value)))


def _is_float64(model: onnx.ModelProto) -> bool:
    types = {v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)}
    return onnx.TensorProto.DOUBLE in types and not types & {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied


def compare(model: onnx.ModelProto, expected: Outputs, actual: Outputs, bound: float | None) -> None:
    assert len(expected) == len(actual), f"{len(actual)} outputs instead of {len(expected)}"
    for value, ref, got in zip(model.graph.output, expected, actual, strict=True):
        _compare_value(value.name, ref, got, bound)


def _compare_value(name: str, ref: Any, got: Any, bound: float | None) -> None:
    """Compare two outputs; `bound` None asks for every bit."""
    if ref is None or got is None:
        assert ref is got, f"'{name}' is absent in one of the models"
        return
    if isinstance(ref, dict):
        assert list(ref) == list(got), f"'{name}' has other keys"
        _compare_value(name, np.array(list(ref.values())), np.array(list(got.values())), bound)
        return
    if isinstance(ref, list):
        assert len(ref) == len(got), f"'{name}' has {len(got)} elements instead of {len(ref)}"
        for index, (a, b) in enumerate(zip(ref, got, strict=True)):
            _compare_value(f"{name}[{index}]", a, b, bound)
        return
    ref, got = np.asarray(ref), np.asarray(got)
    assert ref.dtype == got.dtype, f"'{name}' is {got.dtype} instead of {ref.dtype}"
    assert ref.shape == got.shape, f"'{name}' is of shape {got.shape} instead of {ref.shape}"
    if ref.dtype.kind not in "fc":
        assert np.array_equal(ref, got), f"'{name}' differs at {int((ref != got).sum())} of {ref.size} places"
        return
    for what in (np.isnan, np.isposinf, np.isneginf) if ref.dtype.kind == "f" else (np.isnan,):
        assert np.array_equal(what(ref), what(got)), f"'{name}' differs in {what.__name__}"
    if bound is None:
        same = np.array_equal(ref, got, equal_nan=True) and np.array_equal(
            np.signbit(ref.real)[~np.isnan(ref)], np.signbit(got.real)[~np.isnan(got)]
        )
        assert same, f"'{name}' is not equal bit by bit: off by {_distance(ref, got):.3g}"
        return
    off = _distance(ref, got)
    assert off <= bound, f"'{name}' is off by {off:.3g} of its scale, at most {bound:.3g} is allowed"


def _distance(ref: np.ndarray, got: np.ndarray) -> float:
    """max|d| / max|ref| over the finite places; absolute where the reference is all zero."""
    finite = np.isfinite(ref) & np.isfinite(got)
    if not finite.any():
        return 0.0
    wide = np.complex128 if ref.dtype.kind == "c" else np.float64
    a, b = ref[finite].astype(wide), got[finite].astype(wide)
    return float(np.abs(a - b).max() / (np.abs(a).max() or 1.0))
