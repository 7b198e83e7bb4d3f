"""Samples from .npz files and iterables: names, layouts, scaling, batches, halves, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim_core.calibration.code import call_source, load_function
from onnxslim_core.calibration.source import Source, open_source
from onnxslim_core.calibration.spec import DataInput, DataSpec
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec

FLOAT = np.dtype(np.float32)


def spec(name: str = "x", shape: tuple[int | str | None, ...] = ("n", 3, 8, 6), dtype: Any = FLOAT) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), "tensor", shape)


def images(count: int = 10, shape: tuple[int, ...] = (8, 6, 3)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def test_prepares_like_plain_numpy(tmp_path: Path) -> None:
    pixels = images()
    np.savez(tmp_path / "d.npz", pixels=pixels, label=np.arange(10))
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    entry = DataInput("pixels", "NHWC", 255.0, mean, std)
    source = open_source(tmp_path / "d.npz", [spec()], DataSpec(labels="label", inputs={"x": entry}))
    expected = (pixels.astype(np.float64) / 255 - mean) / std
    assert len(source) == 10
    for index, sample in enumerate(source):
        assert sample["x"].dtype == np.float32
        assert sample["x"].flags.c_contiguous
        np.testing.assert_allclose(sample["x"], expected[index : index + 1].transpose(0, 3, 1, 2), atol=1e-6)
    assert source.labels is not None
    assert [int(label[0]) for label in source.labels] == list(range(10))


def test_layout_is_left_alone_where_the_model_wants_it() -> None:
    pixels = images()
    entry = DataInput(None, "NHWC", 255.0, (0.1, 0.2, 0.3), ())
    source = open_source({"x": pixels}, [spec(shape=("n", 8, 6, 3))], DataSpec(inputs={"x": entry}))
    expected = pixels[:1].astype(np.float64) / 255 - (0.1, 0.2, 0.3)
    np.testing.assert_allclose(source[0]["x"], expected, atol=1e-6)


def test_layout_nchw_to_nhwc() -> None:
    pixels = images(shape=(3, 8, 6))
    source = open_source(
        {"x": pixels}, [spec(shape=(1, 8, 6, 3))], DataSpec(inputs={"x": DataInput(layout="NCHW", scale=1.0)})
    )
    np.testing.assert_array_equal(source[4]["x"], pixels[4:5].transpose(0, 2, 3, 1))


def test_symbolic_sizes_take_channels_first() -> None:
    source = open_source(
        {"x": images()},
        [spec(shape=("n", "c", "h", "w"))],
        DataSpec(inputs={"x": DataInput(layout="NHWC", scale=2.0)}),
    )
    assert source[0]["x"].shape == (1, 3, 8, 6)


def test_fixed_batch_takes_that_many_rows() -> None:
    rows = np.arange(24, dtype=np.float64).reshape(12, 2)
    source = open_source({"x": rows}, [spec(shape=(4, 2))])
    assert len(source) == 3
    np.testing.assert_array_equal(source[1]["x"], rows[4:8])
    assert source[1]["x"].dtype == np.float32
    with pytest.raises(DataError, match="takes 4 rows at a time, the array has 11"):
        open_source({"x": rows[:11]}, [spec(shape=(4, 2))])


def test_labels_follow_the_rows_of_a_batch() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(12, 2)
    data: dict[str, np.ndarray] = {"x": rows, "y": np.arange(12)}
    source = open_source(data, [spec(shape=(4, 2))], DataSpec(labels="y"))
    deciding, judging = source.split()
    assert judging.labels is not None and deciding.labels is not None
    assert [label.tolist() for label in judging.labels] == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert [label.tolist() for label in deciding.labels] == [[4, 5, 6, 7]]


def test_one_more_axis_counts_samples() -> None:
    rows = np.random.default_rng(0).random((5, 2, 7), np.float32)
    source = open_source({"x": rows}, [spec(shape=(2, 7))])
    assert len(source) == 5
    np.testing.assert_array_equal(source[3]["x"], rows[3])


def test_one_array_serves_all_samples() -> None:
    data: dict[str, np.ndarray] = {
        "x": np.ones((6, 4), np.float32),
        "rate": np.array(16000),
        "state": np.zeros((2, 1, 8), np.float32),
    }
    inputs = [spec("x", ("n", 4)), spec("rate", (), np.int64), spec("state", (2, 1, 8))]
    source = open_source(data, inputs)
    assert len(source) == 6
    assert source[5]["rate"].shape == () and int(source[5]["rate"]) == 16000
    assert source[5]["state"].shape == (2, 1, 8)


def test_halves_have_no_sample_in_common() -> None:
    source = open_source({"x": np.arange(9, dtype=np.float32).reshape(9, 1)}, [spec(shape=("n", 1))])
    deciding, judging = source.split()
    seen = [{float(s["x"][0, 0]) for s in half} for half in (deciding, judging)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(9))
    alone = open_source({"x": np.zeros((1, 1), np.float32)}, [spec(shape=("n", 1))]).split()
    assert [len(half) for half in alone] == [0, 1]


def test_limit_spreads_over_the_file() -> None:
    rows = np.arange(100, dtype=np.float32).reshape(100, 1)
    source = open_source({"x": rows}, [spec(shape=("n", 1))], DataSpec(samples=5))
    picked = [float(s["x"][0, 0]) for s in source]
    assert len(picked) == 5
    assert (picked[0], picked[-1]) == (0.0, 99.0)
    assert len(open_source({"x": rows}, [spec(shape=("n", 1))], limit=7)) == 7


def test_iterable_of_dicts_and_ragged_sizes() -> None:
    rng = np.random.default_rng(0)
    rows = [{"ids": rng.integers(0, 9, (1, length))} for length in (3, 5, 4)]
    source = open_source(iter(rows), [spec("ids", ("n", "length"), np.int64)])
    assert [sample["ids"].shape for sample in source] == [(1, 3), (1, 5), (1, 4)]
    for sample, row in zip(source, rows, strict=True):
        np.testing.assert_array_equal(sample["ids"], row["ids"])
    same = open_source([{"x": np.ones((2, 3))}] * 4, [spec(shape=("n", 3))])
    assert [sample["x"].shape for sample in same] == [(2, 3)] * 4


def test_text() -> None:
    entry = InputSpec("words", None, "string", ("n",))
    source = open_source({"words": np.array(["a", "bc"])}, [entry])
    assert source[1]["words"].tolist() == ["bc"]
    with pytest.raises(DataError, match="takes text"):
        open_source({"words": np.zeros(3)}, [entry])


def test_optional_input_may_be_absent() -> None:
    optional = InputSpec("state", None, "optional", None)
    source = open_source({"x": np.zeros((2, 4))}, [spec(shape=("n", 4)), optional])
    assert set(source[0]) == {"x"}


def test_digest_tells_data_and_preparation_apart() -> None:
    def digest(array: np.ndarray, scale: float | None = None) -> str:
        return open_source({"x": array}, [spec(shape=("n", 4))], DataSpec(inputs={"x": DataInput(scale=scale)})).digest

    base = np.arange(8, dtype=np.float32).reshape(2, 4)
    other = base.copy()
    other[1, 1] += 1
    assert len({digest(base), digest(other), digest(base, 2.0), digest(base.astype(np.float64))}) == 4
    assert digest(base) == digest(base.copy())


def test_a_source_passes_through() -> None:
    source = open_source({"x": np.zeros((2, 4), np.float32)}, [spec(shape=("n", 4))])
    assert open_source(source, [spec(shape=("n", 4))]) is source
    assert isinstance(source[:1], Source)


@pytest.mark.parametrize(
    ("data", "options", "needle"),
    [
        ({"y": np.zeros((2, 3, 8, 6))}, {}, "no array 'x' for the model's input, it has y"),
        ({"x": np.zeros((2, 8, 6, 3))}, {}, "input 'x' is ?x3x8x6, a sample of the data is 1x8x6x3"),
        ({"x": np.zeros((0, 3, 8, 6))}, {}, "empty"),
        ({"x": np.zeros((2, 3, 8))}, {}, "input 'x' is ?x3x8x6"),
        ({"x": np.array(["a"])}, {}, "takes float32"),
        (
            {"x": np.zeros((2, 8, 6, 3))},
            {"inputs": {"x": DataInput(layout="NHWC", mean=(1.0, 2.0))}},
            "2 numbers for 3",
        ),
        ({"x": np.zeros((2, 3, 8, 6))}, {"inputs": {"z": DataInput()}}, "the model has no such input; it has x"),
        ({"x": np.zeros((2, 3, 8, 6))}, {"labels": "label"}, "no array 'label' of labels"),
        ({"x": np.zeros((4, 3, 8, 6)), "y": np.zeros(3)}, {"labels": "y"}, "labels for 4 samples"),
        ([], {}, "gives no sample"),
        ([{"x": np.zeros(2)}, {"y": np.zeros(2)}], {}, "sample 1 has ['y'], the first has ['x']"),
        ([np.zeros(2)], {}, "not a dict of arrays"),
    ],
)
def test_refuses(data: Any, options: dict[str, Any], needle: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(data, [spec()], DataSpec(**options))
    assert needle in str(caught.value)
    assert caught.value.exit_code == 3


def test_refuses_numbers_that_do_not_fit_the_type() -> None:
    ids = spec("ids", ("n", 2), np.int32)
    with pytest.raises(DataError, match="takes int32, the data has float64"):
        open_source({"ids": np.zeros((1, 2))}, [ids])
    source = open_source({"ids": np.array([[1, 2**40]])}, [ids])
    with pytest.raises(DataError, match="which int32 does not hold"):
        source[0]


def test_refuses_inputs_of_different_counts() -> None:
    with pytest.raises(DataError, match="differ in their number of samples"):
        open_source({"a": np.zeros((4, 1)), "b": np.zeros((5, 1))}, [spec("a", ("n", 1)), spec("b", ("n", 1))])


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken", b"text"])
def test_refuses_broken_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot read data"):
        open_source(path, [spec()])


def test_refuses_what_it_does_not_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file"):
        open_source(tmp_path / "no.npz", [spec()])
    with pytest.raises(DataError, match=r"holds no image, \.npz or \.npy file"):
        open_source(tmp_path, [spec()])
    with pytest.raises(DataError, match="csv"):
        open_source("x.csv", [spec()])
    np.savez(tmp_path / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot read data"):
        open_source(tmp_path / "objects.npz", [spec()])


def test_function_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def give():\n    return 5\nvalue = 3\n")
    assert load_function("mine.py:give", tmp_path)() == 5
    for named, needle in [
        ("mine.py:take", "has no function 'take'"),
        ("mine.py:value", "no function"),
        ("no.py:f", "no such"),
    ]:
        with pytest.raises(DataError, match=needle):
            load_function(named, tmp_path)


# --- what Python gives


class Mute(Exception):
    """Cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("in str")


class Stubborn:
    """Refuses to be an array."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise Mute


class Tensor:
    """What a tensor of PyTorch that is trained does, whether that is installed or not."""

    def __init__(self, array: np.ndarray, dtype: str = "torch.float32", trained: bool = True) -> None:
        self.array, self.dtype, self.trained, self.shape = array, dtype, trained, array.shape

    def detach(self) -> Tensor:
        return Tensor(self.array, self.dtype, trained=False)

    def cpu(self) -> Tensor:
        return self

    def float(self) -> Tensor:
        return Tensor(self.array, trained=self.trained)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if self.trained or self.dtype == "torch.bfloat16":
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_tensors_that_numpy_does_not_take_are_brought_to_it(dtype: str) -> None:
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    rows = [Tensor(row, dtype) for row in array]
    for data in ({"x": Tensor(array, dtype)}, {"x": rows}, [{"x": Tensor(row[np.newaxis], dtype)} for row in array]):
        source = open_source(data, [spec(shape=("n", 3))])  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate([sample["x"] for sample in source]), array)


def test_bfloat16_feeds_both_itself_and_float32() -> None:
    bfloat16 = np.dtype(pytest.importorskip("ml_dtypes").bfloat16)
    array = np.arange(12).reshape(4, 3).astype(bfloat16)
    for dtype in (bfloat16, FLOAT):
        (first, *_) = open_source({"x": array}, [spec(shape=("n", 3), dtype=dtype)])
        assert first["x"].dtype == dtype
        np.testing.assert_array_equal(first["x"], array[:1].astype(dtype))


def test_texts_of_different_lengths_are_of_one_type() -> None:
    source = open_source([{"x": np.array([word])} for word in ("a", "bcd")], [InputSpec("x", None, "string", ("n",))])
    assert [sample["x"].tolist() for sample in source] == [["a"], ["bcd"]]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"x": [[1.0, 2.0, 3.0], [4.0]]}, "'x' of the data is no array: ValueError: "),
        ([{"x": np.ones((1, 3))}, {"x": [[1], [2, 3]]}], "'x' of sample 1 is no array: ValueError: "),
        ({3: np.ones((4, 3))}, "the data has 3 for the name of an input, which is no text"),
        ([{"x": np.ones((1, 3)), 3: 1}], "sample 0 has 3 for the name of an input, which is no text"),
        ({"x": Stubborn()}, "'x' of the data is no array: Mute"),
        ({"x": [Tensor(np.ones(3)), Tensor(np.ones(2))]}, "'x' of the data is no array: ValueError: "),
    ],
)
def test_what_is_no_array_is_a_line(data: Any, told: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source(data, [spec(shape=("n", 3))])
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("value", ["abc", [[1], [2, 3]], {}, None])
def test_a_value_that_does_not_fit_is_a_line(value: object) -> None:
    inputs = [spec(shape=("n", 3)), spec("k", (), np.int64)]
    with pytest.raises(DataError, match="'k'"):
        open_source({"x": np.ones((4, 3))}, inputs, values={"k": value})


def test_a_failure_that_cannot_say_what_it_is_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "f.py").write_text(
        "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\n\ndef give():\n    raise Mute\n"
    )
    with pytest.raises(DataError, match=r"^'f.py:give' fails when it is run: Mute$"):
        call_source("f.py:give", tmp_path)


@pytest.mark.parametrize("name", ["x", "my input", "a.b", 'say "x"', "größe", "l\n", "😀", "back\\slash"])
def test_a_hint_names_an_input_as_toml_reads_it(name: str) -> None:
    with pytest.raises(DataError) as caught:
        open_source({"other": np.ones((4, 3))}, [spec(name, ("n", 3))])
    _, _, hint = str(caught.value.hint).partition(": ")
    table, _, array = hint.rpartition(" from = ")
    assert tomllib.loads(f"{table}\nfrom = {array}") == {"data": {"inputs": {name: {"from": "ARRAY"}}}}
    assert ('"' in table) == (name != "x")
