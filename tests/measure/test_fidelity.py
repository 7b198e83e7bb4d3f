"""Figures of fidelity, against numbers worked out another way; and what must never pass."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import pytest
from onnx import TensorProto, numpy_helper, parser

from onnxslim_core.errors import MeasureError
from onnxslim_core.measure import truth
from onnxslim_core.measure.fidelity import Fidelity, Truth, compare
from onnxslim_core.measure.scores import OutputFidelity, Tally
from onnxslim_core.measure.session import open_session
from onnxslim_core.model import Model, load


def _load(text: str, **weights: np.ndarray | np.generic) -> Model:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    return load(model)


def _rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _tally(ours: Sequence[Any], theirs: Sequence[Any], batch: int = 1) -> OutputFidelity:
    tally = Tally()
    for a, b in zip(ours, theirs, strict=True):
        tally.add(a, b, batch)
    return tally.result(None)


LINEAR = "g (float[n, 4] x) => (float[n, 6] y) { y = MatMul(x, w) }"


def _linear(scale: float = 1.0, noise: float = 0.0, column: int | None = None) -> Model:
    rng = _rng()
    w = rng.standard_normal((4, 6)).astype(np.float32).astype(np.float64)
    w = w * scale + noise * rng.standard_normal(w.shape)
    if column is not None:
        w[:, column] *= 1.01
    return _load(LINEAR, w=w.astype(np.float32))


def _samples(count: int = 5, rows: int = 1) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((rows, 4)).astype(np.float32)} for _ in range(count)]


# --- the figures


def test_figures_agree_with_plain_numpy() -> None:
    rng = _rng()
    ours = rng.standard_normal((7, 1, 9)) + 5
    theirs = ours + 0.1 * rng.standard_normal(ours.shape)
    found = _tally(list(ours.astype(np.float32)), list(theirs.astype(np.float32)))
    a, b = ours.reshape(7, 9), theirs.reshape(7, 9)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    mean = a.mean(0)
    assert found.answers == 7
    assert found.cosine == pytest.approx(cosines.mean(), rel=1e-6)
    assert found.worst_cosine == pytest.approx(cosines.min(), rel=1e-6)
    assert found.relative_l2 == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-5)
    assert found.max_abs == pytest.approx(np.abs(b - a).max(), rel=1e-5)
    assert found.error == pytest.approx(np.abs(b - a).max() / np.abs(a).max(), rel=1e-5)
    centred = ((a - mean) * (b - mean)).sum() / np.linalg.norm(a - mean) / np.linalg.norm(b - mean)
    assert found.centred_cosine == pytest.approx(centred, rel=1e-5)
    constant = (a @ mean / np.linalg.norm(a, axis=1) / np.linalg.norm(mean)).mean()
    assert found.constant_cosine == pytest.approx(constant, rel=1e-6)
    assert found.constant_relative_l2 == pytest.approx(np.linalg.norm(a - mean) / np.linalg.norm(a), rel=1e-5)


def test_a_model_that_knows_only_the_background_has_a_good_cosine_and_no_centred_one() -> None:
    rng = _rng()
    background = 1000 + 100 * rng.standard_normal(500)
    ours = [(background + rng.standard_normal(500)).astype(np.float32) for _ in range(20)]
    found = _tally(ours, [background.astype(np.float32)] * 20)
    assert found.cosine is not None
    assert found.cosine > 0.999
    assert found.constant_cosine == pytest.approx(found.cosine, abs=1e-5)
    assert found.centred_cosine is not None
    assert abs(found.centred_cosine) < 0.2


def test_one_answer_is_centred_by_its_mean_number() -> None:
    a = np.array([[1.0, 2.0, 3.0]], np.float32)
    assert _tally([a], [a + 7]).centred_cosine == pytest.approx((a - 2).ravel() @ (a + 5).ravel() / 2**0.5 / 149**0.5)
    assert _tally([a], [a]).centred_cosine == pytest.approx(1)


def test_single_numbers_are_compared_over_all_answers() -> None:
    """The cosine of one positive number with another is 1, whatever they are: a broken classifier would pass by it."""
    ours = _rng().uniform(0, 1, (50, 1)).astype(np.float32)
    steady = np.full_like(ours, ours.mean())
    assert _tally([ours], [ours], batch=50).cosine == pytest.approx(1)
    assert _tally([ours], [steady], batch=50).cosine == pytest.approx(0)
    assert _tally([ours], [steady], batch=50).constant_cosine == 0
    assert _tally([ours], [1 - ours], batch=50).worst_cosine == pytest.approx(-1, abs=0.1)
    near = _tally([ours], [ours + 0.01 * _rng().standard_normal(ours.shape)], batch=50).cosine
    assert near is not None and 0.99 < near < 1
    # of a number that is always the same only its size can be compared
    assert _tally([steady], [steady * (1 + 1e-6 * ours)], batch=50).cosine == pytest.approx(1)
    assert _tally([steady], [np.zeros_like(steady)], batch=50).cosine == 0


def test_answers_without_a_number_show_nothing_unless_others_do() -> None:
    empty, some = np.zeros((0, 4), np.float32), np.arange(8, dtype=np.float32).reshape(2, 4)
    found = _tally([empty, empty], [empty, empty])
    assert found.blank == 2 and found.cosine is not None and math.isnan(found.cosine)
    assert found.error == 0
    both = _tally([empty, some, some + 1], [empty, some, some + 1])
    assert both.blank == 0 and both.cosine == pytest.approx(1) and both.answers == 3


def test_a_batch_counts_row_by_row() -> None:
    rng = _rng()
    a = rng.standard_normal((8, 5)).astype(np.float32)
    b = a + np.float32(0.1)
    whole, single = _tally([a], [b], batch=8), _tally([r[None] for r in a], [r[None] for r in b])
    assert whole == single


def test_zero_answers() -> None:
    zero, one = np.zeros((1, 3), np.float32), np.ones((1, 3), np.float32)
    assert _tally([zero], [zero]).cosine == 1
    assert _tally([zero], [zero]).error == 0
    assert _tally([zero], [one]).cosine == 0
    assert _tally([zero], [one]).relative_l2 == math.inf
    assert _tally([one], [zero]).cosine == 0


def test_score_vectors_are_judged_by_their_largest_scores() -> None:
    ours = np.eye(8, dtype=np.float32) * 5 + np.linspace(0, 1, 8, dtype=np.float32)
    theirs = ours.copy()
    theirs[0, 3] = 9  # another class wins for the first answer; four of the five best are left
    found = _tally([ours], [theirs], batch=8)
    assert found.top1 == pytest.approx(7 / 8)
    best = [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(ours, theirs, strict=True)]
    assert found.top5 == pytest.approx(np.mean(best))
    assert found.mean_iou is None


def test_sequences_of_distributions_are_judged_at_each_position_but_boxes_are_not() -> None:
    rng = _rng()
    scores = rng.dirichlet(np.ones(10), (1, 20)).astype(np.float32)
    other = scores.copy()
    other[0, :5] = np.roll(other[0, :5], 1, axis=-1)
    found = _tally([scores], [other])
    assert found.top1 == pytest.approx(0.75)
    assert _tally([10 * scores], [10 * other]).top1 is None


def test_maps_are_judged_by_intersection_over_union() -> None:
    ours, theirs = np.zeros((1, 3, 4, 4), np.float32), np.zeros((1, 3, 4, 4), np.float32)
    ours[:, 0], theirs[:, 0] = 1, 1
    ours[:, 1, :2], theirs[:, 1, :1] = 2, 2  # class 1: 8 against 4 pixels; class 0: 8 against 12; class 2: none
    assert _tally([ours], [theirs]).mean_iou == pytest.approx((4 / 8 + 8 / 12) / 2)
    mask, other = np.zeros((1, 1, 4, 4), np.float32), np.zeros((1, 1, 4, 4), np.float32)
    mask[..., :2], other[..., :3] = 0.9, 0.8
    assert _tally([mask], [other]).mean_iou == pytest.approx((8 / 12 + 4 / 8) / 2)


def test_integers_booleans_and_texts_are_judged_by_equality() -> None:
    found = _tally([np.array([1, 2, 3, 4])], [np.array([1, 2, 3, 5])])
    assert (found.equal, found.equal_share, found.error) == (False, 0.75, 0.25)
    assert found.cosine is None
    assert _tally([np.array([True, False])], [np.array([True, False])]).equal is True
    texts = np.array(["a", "b"], dtype=object)
    assert _tally([texts], [np.array(["a", "c"], dtype=object)]).equal_share == 0.5


def test_sequences_and_maps_are_compared_by_content() -> None:
    probabilities = [{"cat": 0.25, "dog": 0.75}, {"cat": 0.5, "dog": 0.5}]
    assert _tally([probabilities], [[dict(reversed(list(p.items()))) for p in probabilities]]).cosine == pytest.approx(
        1
    )
    assert _tally([probabilities], [[{"cat": 0.75, "dog": 0.25}, probabilities[1]]]).max_abs == pytest.approx(0.5)
    assert _tally([probabilities], [[{"cat": 0.25, "cow": 0.75}, probabilities[1]]]).mismatch
    ragged = [np.ones(3, np.float32), np.ones((2, 2), np.float32)]
    assert _tally([ragged], [ragged]).error == 0
    assert _tally([ragged], [ragged[:1]]).mismatch


def test_nan_and_infinity_count_and_never_look_good() -> None:
    good = np.array([[1.0, 2.0, np.nan, np.inf]], np.float32)
    same = _tally([good], [good])
    assert (same.nan, same.inf, same.not_finite, same.cosine) == ((1, 1), (1, 1), 0, 1)
    for index, value in ((0, np.nan), (1, np.inf), (3, -np.inf), (2, np.inf)):
        bad = good.copy()
        bad[0, index] = value
        found = _tally([good, good], [good, bad])
        assert found.cosine is not None
        assert math.isnan(found.cosine)
        assert not found.within(1e9)
        assert found.not_finite == 1
    healed = good.copy()
    healed[0, 2] = 3
    found = _tally([good], [healed])
    assert not found.within(1e9)
    assert found.not_finite == 0


def test_nan_in_a_candidate_s_scores_is_no_agreement() -> None:
    ours = np.array([[3.0, 1, 2]], np.float32)
    assert _tally([ours], [np.array([[np.nan, 1, 2]], np.float32)]).top1 == 0


@pytest.mark.parametrize(
    "other",
    [np.ones((1, 4), np.float32), np.ones((1, 1, 3), np.float32), np.ones((1, 3), np.int64), [np.ones((1, 3))]],
)
def test_another_shape_or_kind_is_a_mismatch_with_no_figure_that_passes(other: Any) -> None:
    found = _tally([np.ones((1, 3), np.float32)], [other])
    assert found.mismatch
    assert found.cosine is not None
    assert math.isnan(found.cosine)
    assert not found.within(1e9)


# --- whole models


def test_a_model_equals_itself() -> None:
    found = compare(_linear(), _linear(), _samples())
    assert found.equal()
    assert found.min_cosine == pytest.approx(1)
    assert found["y"].max_abs == 0
    assert found["y"].noise_floor is not None
    assert 0 < found["y"].noise_floor < 1e-5
    assert (found.samples, found.data, found.verified) == (5, "given", True)


def test_one_column_off_by_a_hundredth_is_not_equal() -> None:
    found = compare(_linear(), _linear(column=2), _samples())
    assert not found.equal()
    assert found.min_cosine > 0.999


def test_rounding_is_equal() -> None:
    assert compare(_linear(), _linear(scale=1 + 2e-7), _samples()).equal()
    assert not compare(_linear(), _linear(scale=1 + 1e-4), _samples()).equal()


def test_the_noise_floor_sets_the_tolerance_of_an_ill_conditioned_model() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Add(x, big)\n y = Sub(a, big) }"
    big = np.float32(2**20)
    model = _load(text, big=big)
    other = _load(
        "g (float[n, 4] x) => (float[n, 4] y) { a = Add(big, x)\n b = Sub(a, half)\n y = Sub(b, half) }",
        big=big,
        half=np.float32(2**19),
    )
    found = compare(model, other, _samples())
    assert found.equal()
    # the same difference in a model without such noise is a fault
    shifted = _load("g (float[n, 4] x) => (float[n, 4] y) { y = Add(x, c) }", c=np.float32(0.01))
    plain = _load("g (float[n, 4] x) => (float[n, 4] y) { y = Identity(x) }")
    assert not compare(plain, shifted, _samples()).equal()


def test_models_fed_with_ids_have_a_noise_floor_too() -> None:
    table = _rng().standard_normal((9, 4)).astype(np.float32)
    model = _load("g (int64[n, s] ids) => (float[n, s, 4] y) { y = Gather(table, ids) }", table=table)
    found = compare(model, model.copy(), [{"ids": np.array([[1, 2, 3]])}])
    assert found["y"].noise_floor is not None
    assert 0 < found["y"].noise_floor < 1e-6
    kept = model.ir.graph.initializers["table"].const_value
    assert kept is not None
    np.testing.assert_array_equal(kept.numpy(), table)


def _pool(padded: bool) -> Model:
    """MaxPool behind a zero Pad, or with its own padding (minus infinity): not the same for negative inputs."""
    nodes = [
        onnx.helper.make_node("Pad", ["x", "pads"], ["p"]),
        onnx.helper.make_node("MaxPool", ["p"], ["y"], kernel_shape=[3, 3]),
    ]
    if not padded:
        nodes = [onnx.helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])]
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "pads")] if padded else [],
    )
    return load(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


def test_what_an_optimizer_merges_wrongly_is_judged_as_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some releases of onnxruntime merge a zero Pad into MaxPool; this one is made to."""

    def merging(model: Model, *, threads: int = 1, optimize: bool = True) -> Any:
        return open_session(_pool(padded=False) if optimize else model, threads=threads, optimize=optimize)

    monkeypatch.setattr(truth, "open_session", merging)
    sample = {"x": -np.ones((1, 1, 4, 4), np.float32)}
    found = compare(_pool(padded=True), _pool(padded=True), [sample])
    assert found.equal()
    assert found.reference_default["y"].max_abs == 1
    found = compare(_pool(padded=True), _pool(padded=False), [sample])
    assert not found.equal()
    assert found["y"].max_abs == 1


def test_a_candidate_that_is_wrong_only_in_the_default_session_is_not_equal() -> None:
    fine = OutputFidelity("float", 1, cosine=1.0, error=0.0, noise_floor=1e-7)
    rounding = OutputFidelity("float", 1, cosine=1.0, error=1e-6)
    broken = OutputFidelity("float", 1, cosine=0.5, error=0.5)

    def judged(deployed: OutputFidelity, own: OutputFidelity) -> bool:
        return Fidelity({"y": fine}, {"y": deployed}, {"y": own}, samples=1, verified=True).equal()

    assert judged(rounding, rounding)
    assert not judged(broken, rounding)
    assert judged(broken, broken)  # the optimizer does the same to the reference


def test_unverified_is_never_equal_and_has_no_figures() -> None:
    nothing = Fidelity()
    assert not nothing.equal()
    assert not nothing.verified
    assert math.isnan(nothing.min_cosine)
    assert math.isnan(nothing.max_relative_l2)


def test_no_samples_are_refused() -> None:
    with pytest.raises(MeasureError, match="no samples"):
        compare(_linear(), _linear(), [])


def test_outputs_must_have_the_same_names_but_not_the_same_order() -> None:
    body = "{ a = Relu(x)\n b = Neg(x) }"
    two = _load(f"g (float[n, 4] x) => (float[n, 4] a, float[n, 4] b) {body}")
    turned = _load(f"g (float[n, 4] x) => (float[n, 4] b, float[n, 4] a) {body}")
    one = _load(f"g (float[n, 4] x) => (float[n, 4] a) {body}")
    assert compare(two, turned, _samples()).equal()
    with pytest.raises(MeasureError, match="candidate has no output 'b'"):
        compare(two, one, _samples())
    with pytest.raises(MeasureError, match="reference has no output 'b'"):
        compare(one, two, _samples())


def test_swapped_outputs_are_not_equal() -> None:
    two = _load("g (float[n, 4] x) => (float[n, 4] a, float[n, 4] b) { a = Relu(x)\n b = Neg(x) }")
    swapped = _load("g (float[n, 4] x) => (float[n, 4] a, float[n, 4] b) { b = Relu(x)\n a = Neg(x) }")
    assert not compare(two, swapped, _samples()).equal()


def test_parts_are_judged_apart() -> None:
    """Boxes in pixels drown scores in [0, 1]: as a whole the answer looks good, the scores alone do not."""
    rng = _rng()
    w = np.concatenate([100 * rng.standard_normal((4, 4)), rng.standard_normal((4, 2))], axis=1).astype(np.float32)
    wrong = w.copy()
    wrong[:, 4:] = rng.standard_normal((4, 2))
    found = compare(
        _load(LINEAR, w=w),
        _load(LINEAR, w=wrong),
        _samples(),
        parts={"y": (-1, {"boxes": (0, 4), "scores": (4, 6)})},
    )
    assert list(found.outputs) == ["y", "y.boxes", "y.scores"]
    assert found["y"].cosine is not None
    assert found["y"].cosine > 0.99
    assert found["y.boxes"].cosine == pytest.approx(1)
    assert found["y.scores"].cosine is not None
    assert found["y.scores"].cosine < 0.9
    assert found["y.scores"].noise_floor is not None


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"z": (1, {"a": (0, 1)})}, "'z'"),
        ({"y": (5, {"a": (0, 1)})}, "axis 5"),
        ({"y": (1, {"a": (4, 7)})}, "'a'"),
        ({"y": (1, {"a": (2, 2)})}, "'a'"),
    ],
)
def test_parts_that_do_not_exist_are_refused(
    parts: dict[str, tuple[int, dict[str, tuple[int, int]]]], words: str
) -> None:
    with pytest.raises(MeasureError, match=words):
        compare(_linear(), _linear(), _samples(), parts=parts)


def test_a_metric_sees_all_samples_and_the_labels() -> None:
    seen: list[tuple[int, ...]] = []

    def accuracy(outputs: Mapping[str, np.ndarray], labels: Any) -> float:
        seen.append(outputs["y"].shape)
        return float((outputs["y"].argmax(-1) == labels).mean())

    samples = _samples(6, rows=2)
    w = _rng().standard_normal((4, 6)).astype(np.float32)
    labels = np.concatenate([s["x"] @ w for s in samples]).argmax(-1)
    found = compare(_linear(), _linear(noise=2.0), samples, metric=accuracy, labels=labels)
    assert seen == [(12, 6), (12, 6)]
    assert found.metric is not None
    assert found.metric[0] == 1
    assert found.metric[1] < 1
    assert found.metric_drop == pytest.approx(1 - found.metric[1])


def test_a_metric_that_gives_no_number_is_refused() -> None:
    with pytest.raises(MeasureError, match="number"):
        compare(_linear(), _linear(), _samples(), metric=lambda outputs, labels: "good")  # type: ignore[arg-type,return-value]


def test_the_worst_output_counts() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] a, float[n, 4] b) { a = Relu(x)\n b = Mul(x, k) }"
    found = compare(_load(text, k=np.float32(2)), _load(text, k=np.float32(-2)), _samples())
    assert found["a"].cosine == pytest.approx(1)
    assert found.min_cosine == pytest.approx(-1)
    assert found.max_relative_l2 == pytest.approx(2)


def test_a_candidate_that_answers_nan_is_named() -> None:
    text = "g (float[n, 4] x) => (float[n, 4] y) { a = Mul(x, k)\n y = Sqrt(a) }"
    samples = [{"x": np.ones((1, 4), np.float32)}]
    found = compare(_load(text, k=np.float32(1)), _load(text, k=np.float32(-1)), samples)
    assert math.isnan(found.min_cosine)
    assert any(line.startswith("y:") for line in found.not_finite())
    assert not compare(_load(text, k=np.float32(1)), _load(text, k=np.float32(2)), samples).not_finite()


# --- sessions


class _Sessions:
    """Opens sessions as ever, and knows how many there were and how many at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: list[bool] = []
        self.most = 0
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        monkeypatch.setattr(truth, "open_session", self.open)

    def open(self, model: Model, *, threads: int = 1, optimize: bool = True) -> Any:
        session = open_session(model, threads=threads, optimize=optimize)
        self.opened.append(optimize)
        self._alive.add(session)
        self.most = max(self.most, len(self._alive))
        return session


def test_large_models_are_never_open_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, samples = _linear(), _linear(noise=1e-3), _samples(40)
    expected = compare(ours, theirs, samples)
    sessions = _Sessions(monkeypatch)
    monkeypatch.setattr(truth, "LARGE", 0)
    monkeypatch.setattr(truth, "_TRUTH_BYTES", 100)  # four answers at a time
    found = compare(ours, theirs, samples)
    assert sessions.most == 1
    assert found.outputs == expected.outputs
    assert found.samples == 40


def test_a_truth_is_asked_once_for_several_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = _Sessions(monkeypatch)
    reference = Truth(_linear(), _samples())
    first, second = compare(reference, _linear(), sparing=True), compare(reference, _linear(scale=2), sparing=True)
    assert first.equal()
    assert not second.equal()
    # the reference once and then in its default session, where the second candidate made it worth asking
    assert len(sessions.opened) == 1 + 2 * 2 + 1
    assert not first.reference_default
    assert second.reference_default


def test_more_samples_than_are_kept_are_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "_DEFAULT_SAMPLES", 2)
    samples = _samples(7)
    reference = Truth(_linear(), samples)
    for _ in range(2):
        found = compare(reference, _linear(noise=1e-3))
        assert found["y"].answers == 7
        assert found.default["y"].answers == 2
    assert found.outputs == compare(_linear(), _linear(noise=1e-3), samples).outputs
