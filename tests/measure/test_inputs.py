"""Random inputs that run, and what is read from the command line."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxslim_core.errors import MeasureError, RecipeError
from onnxslim_core.measure.inputs import input_specs, parse_shape, parse_value, random_samples
from onnxslim_core.measure.session import open_session, run
from onnxslim_core.model import Model, load


def _load(text: str, **weights: np.ndarray) -> Model:
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    return load(model)


def test_static_sizes_are_taken_as_they_are() -> None:
    model = _load("g (float[2, 3] x, double[1] d) => (float[2, 3] y) { y = Relu(x) }")
    (sample,) = random_samples(model)
    assert sample["x"].shape == (2, 3)
    assert sample["x"].dtype == np.float32
    assert sample["d"].dtype == np.float64


def test_the_same_seed_gives_the_same_samples_and_samples_differ() -> None:
    model = _load("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    first, second = random_samples(model, count=2, seed=3), random_samples(model, count=2, seed=3)
    np.testing.assert_array_equal(first[1]["x"], second[1]["x"])
    assert (first[0]["x"] != first[1]["x"]).any()
    assert (random_samples(model, seed=4)[0]["x"] != first[0]["x"]).any()


def test_equal_symbols_get_equal_sizes() -> None:
    text = "g (float[batch, seq, 4] a, float[batch, seq, 4] b) => (float[batch, seq, 4] y) { y = Add(a, b) }"
    (sample,) = random_samples(_load(text))
    assert sample["a"].shape == sample["b"].shape == (1, 16, 4)


def test_images_get_a_size_at_which_the_model_runs() -> None:
    # the second Reshape takes nothing but 320 x 320 = 102400 pixels
    text = "g (float[n, 3, h, w] image) => (float[3, 102400] y) { y = Reshape(image, to) }"
    (sample,) = random_samples(_load(text, to=np.array([3, 102400])))
    assert sample["image"].shape == (1, 3, 320, 320)


def test_ids_stay_below_the_rows_of_the_table_they_index() -> None:
    text = """g (int64[batch, sequence] ids) => (float[batch, sequence, 4] y) {
        i = Cast<to = 6>(ids)
        y = Gather(table, i)
    }"""
    model = _load(text, table=np.zeros((3, 4), np.float32))
    samples = random_samples(model, count=20)
    drawn = np.concatenate([s["ids"].reshape(-1) for s in samples])
    assert set(drawn.tolist()) == {0, 1, 2}
    session = open_session(model)
    for sample in samples:
        run(session, sample)


def test_masks_are_ones_and_rates_are_rates() -> None:
    text = """g (int64[n, seq] attention_mask, int64 sr, bool[n, seq] padding_mask) => (int64[n, seq] y) {
        y = Mul(attention_mask, sr)
    }"""
    (sample,) = random_samples(_load(text))
    assert (sample["attention_mask"] == 1).all()
    assert sample["padding_mask"].all()
    assert sample["sr"] == 16000
    assert sample["sr"].shape == ()


def test_a_size_below_zero_counts_as_symbolic() -> None:
    text = "g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}')
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    model = load(proto)
    assert input_specs(model)[0].shape == (None, 3)
    assert random_samples(model)[0]["x"].shape == (1, 3)


def test_inputs_with_a_default_are_not_fed() -> None:
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (float[2] x, float[2] b) => (float[2] y) { y = Add(x, b) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "b"))
    assert [s.name for s in input_specs(load(proto))] == ["x"]


def test_shapes_and_values_are_taken() -> None:
    text = "g (float[n, m] x, float[n, m] z) => (float[n, m] y) { y = Add(x, z) }"
    (sample,) = random_samples(_load(text), shapes={"x": (2, 5)}, values={"z": 0.5})
    assert sample["x"].shape == sample["z"].shape == (2, 5)
    assert (sample["z"] == 0.5).all()
    (sample,) = random_samples(_load(text), values={"z": [[1, 2, 3]]})
    assert sample["x"].shape == (1, 3)


def test_texts_and_bytes_are_drawn() -> None:
    model = load(_text_model())
    (sample,) = random_samples(model)
    assert sample["t"].dtype == object
    assert isinstance(sample["t"][0], str)
    (pixels,) = random_samples(_load("g (uint8[64, 64] x) => (uint8[64, 64] y) { y = Identity(x) }"))
    assert pixels["x"].max() > 128


def _text_model() -> onnx.ModelProto:
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>\ng (string[3] t) => (string[3] y) { y = Identity(t) }'
    )


def test_where_nothing_runs_the_input_is_named() -> None:
    text = "g (float[n, 7] tokens) => (float[5, 3] y) { y = Reshape(tokens, to) }"
    with pytest.raises(MeasureError, match="'tokens'") as caught:
        random_samples(_load(text, to=np.array([5, 3])))
    assert "--shape" in str(caught.value.hint)
    assert "\n" not in str(caught.value)


def test_sequences_are_refused_by_name() -> None:
    text = "g (seq(float[2]) parts) => (float[m] y) { y = ConcatFromSequence<axis = 0>(parts) }"
    with pytest.raises(MeasureError, match="'parts' is a sequence"):
        random_samples(_load(text))


@pytest.mark.parametrize(
    ("shapes", "values", "words"),
    [
        ({"z": (1, 2)}, {}, "no input is called 'z'"),
        ({"x": (1, 2, 3)}, {}, "2 axes"),
        ({"x": (1, 4)}, {}, "declared"),
        ({}, {"x": "text"}, "does not fit"),
        ({}, {"x": [1.0, 2.0]}, "axes|does not fit"),
    ],
)
def test_what_does_not_fit_the_inputs_is_refused(
    shapes: dict[str, tuple[int, ...]], values: dict[str, object], words: str
) -> None:
    model = _load("g (float[n, 3] x) => (float[n, 3] y) { y = Relu(x) }")
    with pytest.raises(RecipeError, match=words):
        random_samples(model, shapes=shapes, values=values)


def test_fractions_do_not_become_integers() -> None:
    model = _load("g (int64[2] x) => (int64[2] y) { y = Identity(x) }")
    with pytest.raises(RecipeError, match="int64"):
        random_samples(model, values={"x": 0.5})


def test_shapes_and_values_are_read() -> None:
    assert parse_shape("image=1x3x320x320") == ("image", (1, 3, 320, 320))
    assert parse_shape("a:0=7") == ("a:0", (7,))
    assert parse_shape("x=y=1x2") == ("x=y", (1, 2))
    assert parse_shape("rate=scalar") == ("rate", ())
    assert parse_value("sr=16000") == ("sr", 16000)
    assert parse_value("f=-1.5e3") == ("f", -1500.0)
    assert parse_value("b=true") == ("b", True)
    assert parse_value('t="some words"') == ("t", "some words")
    assert parse_value("v=[1, 2]") == ("v", [1, 2])


@pytest.mark.parametrize("text", ["", "x", "=1", "x=", "x=1xx2", "x=1x-2", "x=1.5", "x=axb", "x=99999x99999", "x=²"])
def test_nonsense_is_no_shape(text: str) -> None:
    with pytest.raises(RecipeError, match="shape"):
        parse_shape(text)


@pytest.mark.parametrize("text", ["", "x", "=1", "x=", "x=abc", "x={}", "x=null", "x=NaN", "x=[1, [2]]", 'x={"a": 1}'])
def test_nonsense_is_no_value(text: str) -> None:
    with pytest.raises(RecipeError, match="value"):
        parse_value(text)
