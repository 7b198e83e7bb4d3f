"""Image files as pixels: decoded with care, turned upright, brought to a size.

    shorter     the shorter side becomes `resize_to` (or just covers the size), the longer one keeps its proportion;
                then the crop is cut out
    stretch     both sides become the size, whatever the proportions
    letterbox   the longer side fits, the rest is filled with grey
    none        no resizing; the crop is cut out of the image as it is

Pixels stay 8-bit until scale, mean and std. Sides and offsets are rounded as torchvision's Resize and CenterCrop do,
since most preprocessing that models were trained behind is theirs.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxslim_core.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Geometry", "check_header", "decode", "random_box", "require_pillow"]

Pixels = NDArray[np.uint8]
Result = TypeVar("Result")

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What is decoded; formats that run programs or load other files are not among them."""

MOST_PIXELS = 120_000_000
"""Of one image: what a decompression bomb says it has is more."""

_BROKEN = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, AttributeError, OverflowError)
_BROKEN_IMAGE = (*_BROKEN, MemoryError, ZeroDivisionError, struct.error, zlib.error, AssertionError, RuntimeError)


def require_pillow() -> None:
    """Make sure that images can be read.

    Raises:
        DataError: if Pillow is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as err:
        raise DataError(
            "image files need Pillow, which is not installed", "pip install 'onnxslim-core[images]'"
        ) from err


def check_header(data: bytes, name: str) -> None:
    """Make sure that bytes begin like an image that will be decoded, without decoding it.

    Raises:
        DataError: if they do not, or if the image is too large.
    """
    _opened(data, name, lambda image: None)


def decode(data: bytes, name: str, gray: bool) -> Image:
    """An image, upright, as 8-bit RGB or grey.

    Args:
        data: The file's bytes.
        name: For messages.
        gray: One channel instead of three.

    Raises:
        DataError: if it cannot be decoded, or holds numbers that are no 8- or 16-bit grey levels or colours.
    """
    from PIL import Image, ImageOps

    def read(image: Image.Image) -> Image.Image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        # 16-bit grey of a PNG is mode I in older versions of Pillow
        if upright.mode.startswith("I;16") or (upright.mode == "I" and image.format == "PNG"):
            upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise DataError(f"image '{name}' has {upright.mode} pixels of 32 bits", "save such data as .npy")
        return upright.convert("L" if gray else "RGB")

    return _opened(data, name, read)


def _opened(data: bytes, name: str, use: Callable[[Image], Result]) -> Result:
    """What is made of an opened image; every way in which Pillow fails is one line."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    text = f"image '{name}' says it has {image.width} x {image.height} pixels"
                    raise DataError(text, f"at most {MOST_PIXELS} are decoded")
                return use(image)
    except Image.DecompressionBombError as err:
        raise DataError(f"image '{name}' is too large: {err}", f"at most {MOST_PIXELS} are decoded") from err
    except _BROKEN_IMAGE as err:
        raise DataError(f"cannot read image '{name}': {_said(err)}", "leave it out, or save it again") from err


def _said(err: BaseException) -> str:
    text = str(err).partition("<_io")[0].strip(" '")
    return (
        "no JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"
        if text.startswith("cannot identify")
        else text or type(err).__name__
    )


def random_box(
    rng: np.random.Generator, image: tuple[int, int], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A rectangle of the proportions of `size` somewhere in an image: from the size itself up to all that fits.

    Args:
        rng: What draws.
        image: Width and height.
        size: Height and width that the model gets.

    Returns:
        left, top, right, bottom in pixels.
    """
    width, height = image
    most = min(width / size[1], height / size[0])
    share = rng.uniform(min(1.0, most), most)
    across, down = size[1] * share, size[0] * share
    left, top = rng.uniform(0, width - across), rng.uniform(0, height - down)
    return left, top, min(left + across, width), min(top + down, height)


@dataclass(frozen=True, slots=True)
class Geometry:
    """How images are brought to a size; see the module.

    Attributes:
        size: Height and width; None leaves what comes out.
        resize: One of `spec.RESIZES`.
        resize_to: The shorter side before the crop; None: so that the size is just covered.
        interpolation: One of `spec.INTERPOLATIONS`.
        crop: One of `spec.CROPS`.
        fill: Grey level around a letterboxed image.
    """

    size: tuple[int, int] | None
    resize: str = "shorter"
    resize_to: int | None = None
    interpolation: str = "bilinear"
    crop: str = "center"
    fill: int = 114

    def apply(self, image: Image, rng: np.random.Generator, name: str) -> Pixels:
        """The pixels that the model gets; [height, width, channels].

        Args:
            image: Upright, RGB or grey.
            rng: Draws random crops.
            name: For messages.

        Raises:
            DataError: if the image is smaller than the crop.
        """
        if self.resize == "letterbox" and self.size is not None:
            return _channels(self._letterbox(image, self.size))
        image = self._resized(image)
        if self.size is None or self.crop == "none":
            return _channels(image)
        height, width = self.size
        spare = image.width - width, image.height - height
        if min(spare) < 0:
            text = (
                f"image '{name}' is {image.width} x {image.height} pixels, smaller than the crop of {width} x {height}"
            )
            raise DataError(text, 'resize = "shorter" enlarges it; resize_to must be at least the crop')
        if self.crop == "random":
            left, top = (int(rng.integers(0, each, endpoint=True)) for each in spare)
        else:
            left, top = (round(each / 2) for each in spare)
        return _channels(image.crop((left, top, left + width, top + height)))

    def cut(self, image: Image, rng: np.random.Generator, flips: bool) -> Pixels:
        """A random part of the image at the size of the model; see `random_box`."""
        assert self.size is not None
        box = random_box(rng, image.size, self.size)
        part = image.resize((self.size[1], self.size[0]), self._filter(), box=box)
        pixels = _channels(part)
        return np.ascontiguousarray(pixels[:, ::-1]) if flips and rng.random() < 0.5 else pixels

    def _filter(self) -> int:
        from PIL import Image

        return int(Image.Resampling[self.interpolation.upper()])

    def _resized(self, image: Image) -> Image:
        """The image before the crop."""
        if self.resize == "none" or (self.size is None and self.resize_to is None):
            return image
        if self.resize == "stretch" and self.size is not None:
            return image.resize((self.size[1], self.size[0]), self._filter())
        width, height = image.size
        if self.resize_to is None:
            assert self.size is not None
            factor = max(self.size[0] / height, self.size[1] / width)
            sides = max(round(width * factor), self.size[1]), max(round(height * factor), self.size[0])
        elif width <= height:
            sides = self.resize_to, max(int(self.resize_to * height / width), 1)
        else:
            sides = max(int(self.resize_to * width / height), 1), self.resize_to
        return image if sides == image.size else image.resize(sides, self._filter())

    def _letterbox(self, image: Image, size: tuple[int, int]) -> Image:
        """The whole image in the middle of a grey one."""
        from PIL import Image as Images

        factor = min(size[0] / image.height, size[1] / image.width)
        width, height = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
        small = image if (width, height) == image.size else image.resize((width, height), self._filter())
        around = Images.new(image.mode, (size[1], size[0]), self.fill if image.mode == "L" else (self.fill,) * 3)
        around.paste(small, ((size[1] - width) // 2, (size[0] - height) // 2))
        return around


def _channels(image: Image) -> Pixels:
    pixels = np.asarray(image, np.uint8)
    return pixels[:, :, np.newaxis] if pixels.ndim == 2 else pixels
