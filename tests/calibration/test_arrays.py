"""Arrays from files: .npz and .npy, folders of them, and that large ones are not held whole."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim_core.calibration import arrays
from onnxslim_core.calibration.arrays import Member, read_npz
from onnxslim_core.calibration.code import call_source
from onnxslim_core.calibration.source import open_source
from onnxslim_core.calibration.spec import DataInput, DataSpec
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec


def spec(name: str = "x", shape: tuple[int | str | None, ...] = ("n", 4), dtype: Any = np.float32) -> InputSpec:
    return InputSpec(name, np.dtype(dtype), "tensor", shape)


def rows(count: int = 12, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


# --- one file


def test_npy_feeds_the_only_input(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", rows())
    source = open_source(tmp_path / "d.npy", [spec()])
    assert len(source) == 12
    np.testing.assert_array_equal(source[7]["x"], rows()[7:8])
    with pytest.raises(DataError, match=r"a \.npy holds one array, the model takes x, z"):
        open_source(tmp_path / "d.npy", [spec(), spec("z")])
    both = open_source(tmp_path / "d.npy", [spec(), spec("z", (1,))], values={"z": 5})
    assert both[0]["z"].tolist() == [5]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_large_members_are_read_by_rows(tmp_path: Path, save: Any, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, ids = np.asarray(rows(50), order=order), np.arange(100).reshape(50, 2)  # type: ignore[call-overload]
    save(tmp_path / "d.npz", x=x, ids=ids, rate=np.array(16000), y=np.arange(50))
    inputs = [spec(), spec("ids", ("n", 2), np.int64), spec("rate", (), np.int64)]
    plan = DataSpec(labels="y", samples=7)
    whole = open_source(tmp_path / "d.npz", inputs, plan)
    monkeypatch.setattr(arrays, "WHOLE", 0)
    assert isinstance(read_npz(tmp_path / "d.npz")["x"], Member)
    lazy = open_source(tmp_path / "d.npz", inputs, plan)
    assert (lazy.digest, lazy.indices, lazy.origins) == (whole.digest, whole.indices, whole.origins)
    assert len(lazy) == 7 and lazy.labels is not None and [int(each[0]) for each in lazy.labels] == list(lazy.indices)
    for sample, number in zip(lazy, lazy.indices, strict=True):
        np.testing.assert_array_equal(sample["x"], x[number : number + 1])
        np.testing.assert_array_equal(sample["ids"], ids[number : number + 1])
        assert int(sample["rate"]) == 16000


def test_of_a_large_file_only_what_is_asked_for_is_in_memory(tmp_path: Path) -> None:
    array = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(4096, 64, 64))
    array[:] = np.arange(4096, dtype=np.float32)[:, None, None]
    del array
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(tmp_path / "x.npy", "x.npy")
    for name in ("x.npy", "d.npz"):  # 64 MB
        tracemalloc.start()
        source = open_source(tmp_path / name, [spec(shape=("n", 64, 64))], DataSpec(samples=16))
        assert sorted({float(sample["x"][0, 0, 0]) for sample in source}) == list(source.indices)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, name


def test_a_batch_is_cut_from_a_large_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "d.npz", x=rows(24))
    monkeypatch.setattr(arrays, "WHOLE", 0)
    source = open_source(tmp_path / "d.npz", [spec(shape=(4, 4))], DataSpec(samples=3))
    assert source.indices == (0, 2, 5)
    np.testing.assert_array_equal(source[1]["x"], rows(24)[8:12])


def test_a_sample_without_its_batch_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", rows(3, 5))
    source = open_source(tmp_path / "d.npy", [spec(shape=(1, 3, 5))])
    assert len(source) == 1 and source[0]["x"].shape == (1, 3, 5)


def test_layout_and_scaling_of_a_large_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 6, 3), np.uint8)
    np.savez(tmp_path / "d.npz", x=pixels)
    monkeypatch.setattr(arrays, "WHOLE", 0)
    entry = DataInput(layout="NHWC", scale=255.0, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    source = open_source(tmp_path / "d.npz", [spec(shape=("n", 3, 8, 6))], DataSpec(inputs={"x": entry}))
    expected = ((pixels / 255.0 - entry.mean) / entry.std).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(np.concatenate([sample["x"] for sample in source]), expected, atol=1e-6)


# --- folders


def test_folder_of_npz(tmp_path: Path) -> None:
    for number, count in enumerate((3, 1, 4)):
        np.savez(
            tmp_path / f"{number}.npz", x=rows(count, seed=number), z=np.full((count, 1), number), y=np.arange(count)
        )
    plan, inputs = DataSpec(labels="y"), [spec(), spec("z", ("n", 1), np.int64)]
    source = open_source(tmp_path, inputs, plan)
    assert len(source) == 8 and len(set(source.origins)) == 8
    assert [int(sample["z"][0, 0]) for sample in source] == [0, 0, 0, 1, 2, 2, 2, 2]
    np.testing.assert_array_equal(source[6]["x"], rows(4, seed=2)[2:3])
    assert source.labels is not None and [int(each[0]) for each in source.labels] == [0, 1, 2, 0, 0, 1, 2, 3]
    by_file = open_source(tmp_path, inputs, DataSpec(origins="file"))
    assert by_file.origins == [0, 0, 0, 1, 2, 2, 2, 2]
    few = open_source(tmp_path, inputs, limit=2)
    assert len(few) == 2


def test_folder_of_npy_files_that_are_samples(tmp_path: Path) -> None:
    for number in range(6):
        np.save(tmp_path / f"s{number}.npy", rows(1, seed=number)[0])  # without the batch axis
    source = open_source(tmp_path, [spec()])
    assert len(source) == 6
    np.testing.assert_array_equal(source[4]["x"], rows(1, seed=4))


def test_folder_of_npy_files_that_are_inputs(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(5))
    np.save(tmp_path / "z.npy", np.arange(5)[:, None])
    source = open_source(tmp_path, [spec(), spec("z", ("n", 1), np.int64)])
    assert [int(sample["z"][0, 0]) for sample in source] == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match="no array 'q'"):
        open_source(tmp_path, [spec(), spec("q")])


def test_texts_of_different_lengths_in_a_folder(tmp_path: Path) -> None:
    for number in range(4):
        np.savez(tmp_path / f"{number}.npz", ids=np.arange(number + 2)[None])
    source = open_source(tmp_path, [spec("ids", ("n", "length"), np.int64)])
    assert [sample["ids"].shape for sample in source] == [(1, 2), (1, 3), (1, 4), (1, 5)]


# --- origins


def test_origins_from_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=rows(), photo=np.repeat([7, 3, 9, 1], 3))
    source = open_source(tmp_path / "d.npz", [spec()], DataSpec(origins="photo"))
    assert source.origins == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    deciding, judging = source.split()
    assert (deciding.indices, judging.indices) == ((3, 4, 5, 9, 10, 11), (0, 1, 2, 6, 7, 8))
    with pytest.raises(DataError, match="no array 'film' of origins"):
        open_source(tmp_path / "d.npz", [spec()], DataSpec(origins="film"))


def test_equal_rows_are_of_one_origin() -> None:
    x = rows(6)
    x[4] = x[1]
    source = open_source({"x": x}, [spec()])
    assert source.origins == [0, 1, 2, 3, 1, 4]
    deciding, judging = source.split()
    assert not set(deciding.origins) & set(judging.origins)


def test_the_digest_is_of_the_samples_given() -> None:
    source = open_source({"x": rows()}, [spec()])
    deciding, judging = source.split()
    assert len({source.digest, deciding.digest, judging.digest, source.first(3).digest}) == 4
    other = rows()
    other[1] += 1  # among those that decide
    moved = open_source({"x": other}, [spec()]).split()
    assert moved[1].digest == judging.digest and moved[0].digest != deciding.digest


# --- what is refused


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
def test_nan_is_refused_when_the_data_is_opened(kind: Any) -> None:
    x = rows().astype(kind)
    x[5, 2] = np.nan
    with pytest.raises(DataError, match="input 'x': sample 5 of the data holds NaN"):
        open_source({"x": x}, [spec(dtype=kind)])
    assert len(open_source({"x": x[:5]}, [spec(dtype=kind)])) == 5


def test_fewer_than_asked_for() -> None:
    with pytest.raises(DataError, match="13 samples are asked for, it has 12") as caught:
        open_source({"x": rows()}, [spec()], DataSpec(samples=13))
    assert caught.value.hint == "ask for samples = 12 or fewer"
    assert len(open_source({"x": rows()}, [spec()], DataSpec(max_samples=13))) == 12
    with pytest.raises(DataError, match="4 samples are asked for, it has 3"):
        open_source(({"x": rows(1, seed=i)} for i in range(3)), [spec()], DataSpec(samples=4))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"text"])
def test_broken_npy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d.npy").write_bytes(content)
    with pytest.raises(DataError, match="cannot read data"):
        open_source(tmp_path / "d.npy", [spec()])


def test_any_damage_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "d.npy", rows())
    np.savez_compressed(tmp_path / "d.npz", x=rows(), y=np.arange(12))
    whole = {name: (tmp_path / name).read_bytes() for name in ("d.npy", "d.npz")}
    for number in range(150):
        monkeypatch.setattr(arrays, "WHOLE", 0 if number % 2 else 2**24)
        for name, content in whole.items():
            broken = bytearray(content)
            for place in rng.integers(0, 130 if number % 3 else len(broken), 3):
                broken[place] = rng.integers(0, 256)
            (tmp_path / name).write_bytes(bytes(broken[: rng.integers(1, 4 * len(broken))]))
            try:
                list(open_source(tmp_path / name, [spec()]))
            except DataError as err:
                assert "\n" not in str(err)


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.array([{"a": 1}], dtype=object))
    np.savez(tmp_path / "d.npz", x=np.array([{"a": 1}], dtype=object))
    for name in ("d.npy", "d.npz"):
        with pytest.raises(DataError, match="cannot read data"):
            open_source(tmp_path / name, [spec()])


def test_a_member_that_ends_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", rows(100))
    short = (tmp_path / "x.npy").read_bytes()[:-200]
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", short)
    monkeypatch.setattr(arrays, "WHOLE", 0)
    with pytest.raises(DataError, match="ends too early"):
        open_source(tmp_path / "d.npz", [spec()])
    (tmp_path / "x.npy").write_bytes(short)
    with pytest.raises(DataError, match="cannot read data"):
        open_source(tmp_path / "x.npy", [spec()])


def test_a_header_that_promises_too_much(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match="says it has"):
        open_source(tmp_path / "d.npz", [spec()])


def test_a_member_that_unpacks_to_more_than_its_header_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "x.npy", rows(4))
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", (tmp_path / "x.npy").read_bytes() + bytes(2**27))
    tracemalloc.start()
    source = open_source(tmp_path / "d.npz", [spec()])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(source[3]["x"], rows(4)[3:])
    assert peak < 2**24


def test_arrays_take_no_keys_of_images() -> None:
    with pytest.raises(DataError, match="are for image files"):
        open_source({"x": rows()}, [spec()], DataSpec(inputs={"x": DataInput(resize="stretch")}))


def test_a_type_that_is_asked_for_rounds() -> None:
    x = np.array([[0.6, 1.4], [2.5, -3.0]])
    ids = spec("ids", ("n", 2), np.int64)
    source = open_source({"ids": x}, [ids], DataSpec(inputs={"ids": DataInput(dtype="int64")}))
    assert [sample["ids"].tolist() for sample in source] == [[[1, 1]], [[2, -3]]]
    with pytest.raises(DataError, match="takes int64, the data has float64") as caught:
        open_source({"ids": x}, [ids])
    assert caught.value.hint == 'dtype = "int64" in [data.inputs.ids] rounds'


# --- functions and sequences


def test_a_function_gives_whatever_is_data(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def rows():\n    return {'x': np.arange(20.0).reshape(5, 4)}\n"
        "def stream():\n    for i in range(10**9):\n        yield {'x': np.full((1, 4), i)}\n"
        "def breaks():\n    yield {'x': np.zeros((1, 4))}\n    raise KeyError('gone')\n"
        "def leaves():\n    raise SystemExit(0)\n"
    )
    assert len(open_source(call_source("mine.py:rows", tmp_path), [spec()])) == 5
    assert len(open_source(call_source("mine.py:stream", tmp_path), [spec()], limit=6)) == 6
    with pytest.raises(DataError, match=r"'mine\.py:breaks' fails when it is run: KeyError"):
        open_source(call_source("mine.py:breaks", tmp_path), [spec()])
    with pytest.raises(DataError, match="SystemExit"):
        call_source("mine.py:leaves", tmp_path)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(DataError, match=r"'bad\.py' fails when it is run: ZeroDivisionError"):
        call_source("bad.py:f", tmp_path)
    assert len(open_source(lambda: {"x": rows()}, [spec()])) == 12


def test_of_a_sequence_evenly_spread_samples_are_asked_for() -> None:
    asked: list[int] = []

    class Mine(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            asked.append(index)
            return {"x": np.full((1, 4), index)}

    source = open_source(Mine(range(100)), [spec()], limit=5)
    assert asked == [0, 25, 50, 74, 99] and len(source) == 5
