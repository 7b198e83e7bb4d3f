"""Images as samples: what Pillow decodes is brought to the model's input, and what is not an image is refused."""

from __future__ import annotations

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxslim_core.calibration import folders, images, pixels
from onnxslim_core.calibration.source import Source, open_source
from onnxslim_core.calibration.spec import DataInput, DataSpec
from onnxslim_core.errors import DataError
from onnxslim_core.measure.inputs import InputSpec

pytest.importorskip("PIL")
from PIL import Image


def spec(shape: tuple[int | str | None, ...] = ("n", 3, 8, 6), dtype: Any = np.float32, name: str = "x") -> InputSpec:
    return InputSpec(name, np.dtype(dtype), "tensor", shape)


def picture(number: int, width: int = 20, height: int = 16) -> Image.Image:
    """Waves, so that neighbours correlate and every channel and place differs."""
    across, down = np.meshgrid(np.linspace(0, 3, width), np.linspace(0, 2, height))
    waves = [np.sin(across * (number + 1) + down * k + k) for k in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, -1) * 100 + 128))


def folder(path: Path, count: int = 5, ending: str = ".png") -> Path:
    path.mkdir(exist_ok=True)
    for number in range(count):
        picture(number).save(path / f"{number}{ending}")
    return path


def given(entry: DataInput, **options: Any) -> DataSpec:
    return DataSpec(inputs={"x": entry}, **options)


def only(source: Source, index: int = 0) -> np.ndarray:
    return source[index]["x"]


# --- preprocessing, against plain Pillow and numpy


def test_a_folder_alone_suffices_and_what_was_assumed_is_told(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "photos"), [spec()])
    assert (len(source), source.name) == (5, "photos")
    # 20 x 16 to 6 x 8: the shorter side against its target is the height, 16 to 8, so 10 x 8, and 6 of the 10 columns
    expected = np.asarray(picture(2).resize((10, 8), Image.Resampling.BILINEAR).crop((2, 0, 8, 8)), np.float32) / 255
    np.testing.assert_array_equal(only(source, 2), expected.transpose(2, 0, 1)[None])
    assert only(source).dtype == np.float32 and only(source).flags.c_contiguous
    told = ", ".join(source.assumed)
    for word in ('resize = "shorter"', 'crop = "center"', 'channels = "RGB"', "scale = 255"):
        assert word in told
    assert "layout" not in told  # the shape says it


def test_nothing_is_assumed_where_all_is_said(tmp_path: Path) -> None:
    entry = DataInput(resize="stretch", crop="none", channels="BGR", scale=1.0)
    source = open_source(folder(tmp_path / "p"), [spec()], given(entry))
    assert source.assumed == ()
    expected = np.asarray(picture(0).resize((6, 8), Image.Resampling.BILINEAR), np.float32)[..., ::-1]
    np.testing.assert_array_equal(only(source)[0], expected.transpose(2, 0, 1))


def test_the_usual_imagenet_preprocessing(tmp_path: Path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    entry = DataInput(resize="shorter", resize_to=10, crop="center", scale=255.0, mean=mean, std=std, channels="RGB")
    source = open_source(folder(tmp_path / "p"), [spec((1, 3, 8, 8))], given(entry))
    small = picture(1).resize((12, 10), Image.Resampling.BILINEAR)  # 20 * 10 / 16 = 12.5, cut off
    expected = (np.asarray(small.crop((2, 1, 10, 9)), np.float64) / 255 - mean) / std
    np.testing.assert_allclose(only(source, 1)[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_letterbox_keeps_the_whole_image(tmp_path: Path) -> None:
    entry = DataInput(resize="letterbox", scale=1.0, fill=7)
    source = open_source(folder(tmp_path / "p"), [spec(("n", 3, 10, 10))], given(entry))
    inner = np.asarray(picture(0).resize((10, 8), Image.Resampling.BILINEAR), np.float32).transpose(2, 0, 1)
    assert (only(source)[0, :, [0, 9]] == 7).all()
    np.testing.assert_array_equal(only(source)[0, :, 1:9], inner)


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_interpolations(tmp_path: Path, name: str) -> None:
    entry = DataInput(resize="stretch", interpolation=name, scale=1.0)
    source = open_source(folder(tmp_path / "p", 1), [spec(("n", 3, 5, 9))], given(entry))
    expected = np.asarray(picture(0).resize((9, 5), Image.Resampling[name.upper()]), np.float32)
    np.testing.assert_array_equal(only(source)[0], expected.transpose(2, 0, 1))


def test_channels_last_gray_and_bytes(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", 2)
    last = open_source(path, [spec((1, 8, 6, 3), np.uint8)])
    assert only(last).shape == (1, 8, 6, 3) and only(last).dtype == np.uint8 and only(last).max() > 100
    gray = open_source(path, [spec((1, 1, 8, 6))])
    small = picture(0).convert("L").resize((10, 8), Image.Resampling.BILINEAR).crop((2, 0, 8, 8))
    np.testing.assert_array_equal(only(gray)[0, 0], np.asarray(small, np.float32) / np.float32(255))


def test_signed_bytes_are_rounded_where_that_is_said(tmp_path: Path) -> None:
    path, entry = folder(tmp_path / "p", 1), DataInput(scale=1.0, mean=(128.0,), dtype="int8", resize="stretch")
    source = open_source(path, [spec((1, 3, 8, 6), np.int8)], given(entry))
    expected = np.asarray(picture(0).resize((6, 8), Image.Resampling.BILINEAR), np.int32) - 128
    np.testing.assert_array_equal(only(source)[0], expected.transpose(2, 0, 1))
    with pytest.raises(DataError, match="how pixels become that is not said"):
        open_source(path, [spec((1, 3, 8, 6), np.int8)])
    with pytest.raises(DataError, match="which int8 does not hold"):
        only(open_source(path, [spec((1, 3, 8, 6), np.int8)], given(DataInput(scale=1.0, dtype="int8"))))


def test_sizes_that_the_model_leaves_open(tmp_path: Path) -> None:
    path, free = folder(tmp_path / "p", 2), spec(("n", 3, "h", "w"))
    with pytest.raises(DataError, match="takes images of any size") as caught:
        open_source(path, [free])
    assert caught.value.hint is not None and "--shape x=" in caught.value.hint
    assert only(open_source(path, [free], given(DataInput(size=(5, 7))))).shape == (1, 3, 5, 7)
    assert only(open_source(path, [free], shapes={"x": (1, 3, 4, 4)})).shape == (1, 3, 4, 4)
    whole = open_source(path, [free], given(DataInput(resize="none")))
    assert only(whole).shape == (1, 3, 16, 20)
    with pytest.raises(DataError, match="size is"):
        open_source(path, [spec()], given(DataInput(size=(5, 7))))


def test_a_batch_takes_several_images(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "p", 5), [spec((2, 3, 8, 6))])
    assert len(source) == 2 and only(source).shape == (2, 3, 8, 6)
    alone = open_source(tmp_path / "p", [spec()])
    np.testing.assert_array_equal(only(source, 1), np.concatenate([only(alone, 2), only(alone, 3)]))
    with pytest.raises(DataError, match="takes 9 images at a time, there are 5"):
        open_source(tmp_path / "p", [spec((9, 3, 8, 6))])


def test_other_inputs_are_fed_a_value(tmp_path: Path) -> None:
    path, ratio = folder(tmp_path / "p", 2), InputSpec("ratio", np.dtype(np.float32), "tensor", (1, 2))
    with pytest.raises(DataError, match="input 'ratio' is fed by nothing"):
        open_source(path, [spec(), ratio])
    source = open_source(path, [spec(), ratio], DataSpec(inputs={"ratio": DataInput(value=[[1.0, 2.0]])}))
    np.testing.assert_array_equal(source[1]["ratio"], [[1, 2]])
    np.testing.assert_array_equal(open_source(path, [spec(), ratio], values={"ratio": 3})[0]["ratio"], [[3, 3]])


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".JPEG"])
def test_formats(tmp_path: Path, ending: str) -> None:
    path = folder(tmp_path / "p", 2, ending)
    decoded = np.asarray(Image.open(path / f"1{ending}").convert("RGB"), np.float32)
    source = open_source(path, [spec(("n", 3, "h", "w"))], given(DataInput(resize="none", scale=1.0)))
    np.testing.assert_array_equal(only(source, 1)[0], decoded.transpose(2, 0, 1))


def test_images_are_turned_upright(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown rotated by 90 degrees clockwise
    picture(0).save(tmp_path / "p" / "a.png", exif=exif)
    source = open_source(tmp_path / "p", [spec(("n", 3, "h", "w"))], given(DataInput(resize="none", scale=1.0)))
    np.testing.assert_array_equal(only(source)[0], np.rot90(np.asarray(picture(0)), -1).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I;16.png"])
def test_modes(tmp_path: Path, mode: str) -> None:
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / ("a.png" if mode.endswith(".png") else "a.tif")
    if mode.startswith("I;16"):
        Image.fromarray(np.arange(320, dtype=np.uint16).reshape(16, 20) * 200).save(path)
        expected = (np.arange(320).reshape(16, 20) * 200 // 256).astype(np.float32)[..., None].repeat(3, -1)
    else:
        picture(0).convert(mode).save(path)
        expected = np.asarray(Image.open(path).convert("RGB"), np.float32)
    source = open_source(tmp_path / "p", [spec(("n", 3, 16, 20))], given(DataInput(scale=1.0)))
    np.testing.assert_array_equal(only(source)[0], expected.transpose(2, 0, 1))


# --- crops, origins, halves


def test_random_crops_are_spread_over_the_images_and_the_same_each_time(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", 5)
    source = open_source(path, [spec()], DataSpec(crops=23))
    assert len(source) == 23
    assert sorted(np.unique(source.origins, return_counts=True)[1]) == [4, 4, 5, 5, 5]
    again = open_source(path, [spec()], DataSpec(crops=23))
    for first, second in zip(source, again, strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])
    assert source.digest == again.digest
    other = open_source(path, [spec()], DataSpec(crops=23), seed=1)
    assert other.digest != source.digest and (only(other) != only(source)).any()
    assert len({sample["x"].tobytes() for sample in source}) == 23


def test_no_image_is_on_both_sides(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", 5)
    (path / "copy.png").write_bytes((path / "3.png").read_bytes())
    source = open_source(path, [spec()], DataSpec(crops=60))
    assert len(set(source.origins)) == 5  # the copy is the same image
    deciding, judging = source.split()
    assert not set(deciding.origins) & set(judging.origins)
    assert len(deciding) + len(judging) == 60 and min(len(deciding), len(judging)) >= 20
    assert not set(deciding.indices) & set(judging.indices)


def test_crops_of_batches_keep_the_images_of_a_batch_together(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path / "p", 6), [spec((2, 3, 8, 6))], DataSpec(crops=24))
    assert len(source) == 12 and len(set(source.origins)) == 3
    deciding, judging = source.split()
    assert not set(deciding.origins) & set(judging.origins)


def test_a_crop_has_the_proportions_of_the_input_and_at_least_its_size() -> None:
    rng, shares = np.random.default_rng(0), []
    for _ in range(500):
        left, top, right, bottom = pixels.random_box(rng, (200, 120), (30, 20))
        assert 0 <= left < right <= 200 and 0 <= top < bottom <= 120
        assert (bottom - top) / (right - left) == pytest.approx(1.5)
        shares.append((right - left) / 20)
    assert 1 <= min(shares) < 1.2 and 3.8 < max(shares) <= 4
    assert pixels.random_box(rng, (10, 10), (30, 20))[1::2] == pytest.approx((0, 10))  # smaller than the input


def test_random_crop_after_resizing(tmp_path: Path) -> None:
    entry = DataInput(resize="shorter", resize_to=12, crop="random", scale=1.0)
    source = open_source(folder(tmp_path / "p", 3), [spec()], given(entry))
    small = np.asarray(picture(0).resize((15, 12), Image.Resampling.BILINEAR), np.float32)
    windows = [small[top : top + 8, left : left + 6] for top in range(5) for left in range(10)]
    assert any((only(source)[0].transpose(1, 2, 0) == window).all() for window in windows)


def test_flips_can_be_switched_off(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    ramp = np.broadcast_to(np.arange(0, 200, 5).astype(np.uint8)[None, :, None], (40, 40, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "p" / "a.png")

    def rising(flips: bool) -> set[bool]:
        source = open_source(tmp_path / "p", [spec()], DataSpec(crops=20, flips=flips))
        return {bool(sample["x"][0, 0, 0, -1] > sample["x"][0, 0, 0, 0]) for sample in source}

    assert rising(True) == {True, False} and rising(False) == {True}


def test_labels_are_the_folders(tmp_path: Path) -> None:
    for name in ("dog", "cat"):
        folder(tmp_path / "p").joinpath(name).mkdir()
        for number in range(2):
            picture(number + 2 * len(name)).save(tmp_path / "p" / name / f"{number}.png")
    for stray in (tmp_path / "p").glob("*.png"):
        stray.unlink()
    source = open_source(tmp_path / "p", [spec()], DataSpec(labels="folder"))
    assert source.labels is not None
    assert [int(label[0]) for label in source.labels] == [0, 0, 1, 1]  # cat, dog


def test_limit_spreads_over_the_folder_and_decodes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "p", 20)
    read: list[str] = []
    plain = folders.Found.read

    def counted(self: folders.Found, number: int) -> bytes:
        read.append(self.names[number])
        return plain(self, number)

    monkeypatch.setattr(folders.Found, "read", counted)
    source = open_source(path, [spec()], limit=4)
    list(source)
    list(source)
    assert len(source) == 4 and len(set(read)) == 4 and len(read) == 8  # once for the hash, once to decode


def test_more_than_is_kept_is_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "p", 4)
    expected = [sample["x"] for sample in open_source(path, [spec()], DataSpec(crops=12))]
    monkeypatch.setattr(images, "KEPT", 500)
    source = open_source(path, [spec()], DataSpec(crops=12))
    for _ in range(2):
        for sample, first in zip(source, expected, strict=True):
            np.testing.assert_array_equal(sample["x"], first)


# --- zips, and what is refused


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def test_a_zip_is_like_its_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "p", 3)
    members = {f"p/{each.name}": each.read_bytes() for each in path.iterdir()}
    extra = {"__MACOSX/p/._0.png": b"junk", "p/.hidden.png": b"junk", "p/readme.txt": b"text", "../up.txt": b"x"}
    source = open_source(zipped(tmp_path / "p.zip", {**members, **extra}), [spec()])
    plain = open_source(path, [spec()])
    assert len(source) == 3 and source.digest == plain.digest
    for first, second in zip(source, plain, strict=True):
        np.testing.assert_array_equal(first["x"], second["x"])


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "LARGEST_FILE", 2**20)
    path = zipped(tmp_path / "bomb.zip", {"a.bmp": b"BM" + bytes(2**26)})
    with pytest.raises(DataError, match=r"'a.bmp' in bomb.zip is larger than 1 MB"):
        open_source(path, [spec()])


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    Image.new("1", (3000, 3000)).save(tmp_path / "p" / "a.png")
    assert (tmp_path / "p" / "a.png").stat().st_size < 5000
    monkeypatch.setattr(pixels, "MOST_PIXELS", 10**6)
    with pytest.raises(DataError, match="says it has 3000 x 3000 pixels"):
        open_source(tmp_path / "p", [spec()])


def test_a_larger_bomb_than_pillow_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p").mkdir()
    Image.new("1", (3000, 3000)).save(tmp_path / "p" / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="is too large"):
        open_source(tmp_path / "p", [spec()])


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    outside = folder(tmp_path / "outside", 2)
    path = folder(tmp_path / "p", 2)
    (path / "link.png").symlink_to(outside / "1.png")
    with pytest.raises(DataError, match=r"'link.png' in p is a link that leaves the folder"):
        open_source(path, [spec()])
    (path / "link.png").unlink()
    (path / "far").symlink_to(outside)
    (path / "again").symlink_to(path)
    assert len(open_source(path, [spec()])) == 2  # links to folders are not entered
    (path / "near.png").symlink_to(path / "0.png")
    assert len(open_source(path, [spec()])) == 3


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n broken", encoded(picture(0))[:60], encoded(picture(0), "GIF")[:9]]
)
def test_a_broken_image_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = folder(tmp_path / "p", 1)
    (path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"image '(bad|0)\.png'"):
        list(open_source(path, [spec()]))


def test_any_damage_is_a_data_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "p").mkdir()
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"):
        whole = encoded(picture(1), kind)
        for _ in range(40):
            broken = bytearray(whole)
            for place in rng.integers(0, len(broken), 4):
                broken[place] = rng.integers(0, 256)
            (tmp_path / "p" / "a.png").write_bytes(bytes(broken[: rng.integers(1, len(broken) + 1)]))
            try:
                assert only(open_source(tmp_path / "p", [spec()])).shape == (1, 3, 8, 6)
            except DataError as err:
                assert "\n" not in str(err)


def test_without_pillow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "p", 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match="need Pillow") as caught:
        open_source(path, [spec()])
    assert caught.value.hint == "pip install 'onnxslim-core[images]'"


@pytest.mark.parametrize(
    ("shape", "entry", "options", "needle"),
    [
        (("n", 3, 8, 6), DataInput(mean=(0.5,)), {}, "'mean' or 'std' and no 'scale'"),
        (("n", 3, 8, 6), DataInput(scale=1.0, mean=(1.0, 2.0)), {}, "'mean' has 2 numbers for 3 channels"),
        (("n", 3, 8, 6), DataInput(channels="gray"), {}, "has 3 channels, channels = 'gray' gives others"),
        (("n", 5, 8, 6), DataInput(), {}, "images have 1 or 3 channels"),
        (("n", 3, 8, 6), DataInput(layout="NHWC"), {}, "has 6 channels in layout NHWC"),
        (("n", 3, 8, 3), DataInput(), {}, "which axis has the channels"),
        (("n", 3, 8, 6), DataInput("pixels"), {}, "names an array, the data is image files"),
        (("n", 3, 8, 6), DataInput(dtype="float64"), {}, r"takes float32, \[data.inputs.x\] says float64"),
        (("n", 192), DataInput(), {}, "no input with 4 axes"),
        (("n", 3, 8, 6), DataInput(), {"samples": 6}, "6 samples are asked for, it has 5"),
        (("n", 3, 8, 6), DataInput(), {"labels": "y"}, "names an array"),
        (("n", 3, 8, 6), DataInput(), {"labels": "folder"}, "needs a folder for each class"),
        (("n", 3, 30, 30), DataInput(resize="none", crop="center"), {}, "smaller than the crop of 30 x 30"),
    ],
)
def test_refuses(tmp_path: Path, shape: Any, entry: DataInput, options: dict[str, Any], needle: str) -> None:
    with pytest.raises(DataError, match=needle) as caught:
        list(open_source(folder(tmp_path / "p"), [spec(shape)], given(entry, **options)))
    assert caught.value.exit_code == 3


def test_refuses_folders_of_nothing_or_of_several_kinds(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image.*found: 1 \.txt"):
        open_source(tmp_path / "p", [spec()])
    picture(0).save(tmp_path / "p" / "a.png")
    np.save(tmp_path / "p" / "a.npy", np.zeros((2, 3, 8, 6)))
    with pytest.raises(DataError, match="holds 1 npy and 1 images files"):
        open_source(tmp_path / "p", [spec()])


def test_refuses_crops_of_arrays() -> None:
    with pytest.raises(DataError, match="crops are cut out of image files"):
        open_source({"x": np.zeros((4, 3, 8, 6))}, [spec()], DataSpec(crops=8))


@pytest.mark.parametrize(
    ("shape", "layout", "given_shape", "size"),
    [
        (("n", 3, "h", "w"), None, "1x3x224x224", "[224, 224]"),
        (("n", "h", "w", 3), None, "1x224x224x3", "[224, 224]"),
        ((2, "h", 96, 1), None, "2x224x96x1", "[224, 96]"),
        (("n", "a", "b", "c"), "NHWC", "1x224x224x3", "[224, 224]"),
    ],
)
def test_the_hint_for_an_open_size_keeps_to_the_model(
    tmp_path: Path, shape: tuple[int | str, ...], layout: str | None, given_shape: str, size: str
) -> None:
    with pytest.raises(DataError) as caught:
        open_source(folder(tmp_path / "p"), [spec(shape)], given(DataInput(layout=layout)))
    assert caught.value.hint == f"--shape x={given_shape}, or size = {size} in [data.inputs.x]"


def test_crops_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "p", 2)
    with pytest.raises(DataError, match=r"^100000000 crops are asked for, of 2 images at most 2000 are taken$"):
        open_source(path, [spec()], DataSpec(crops=100_000_000))
    monkeypatch.setattr(images, "CROPS_PER_IMAGE", 4)
    assert len(open_source(path, [spec()], DataSpec(crops=8))) == 8
    with pytest.raises(DataError, match="at most 8"):
        open_source(path, [spec()], DataSpec(crops=9))
    monkeypatch.setattr(images, "MOST_CROPS", 7)
    with pytest.raises(DataError, match="at most 7"):
        open_source(path, [spec()], DataSpec(crops=8))
