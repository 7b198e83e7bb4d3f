"""Real inputs for the zoo's models, in three parts that share no photo and no stretch of a recording.

    "decide"   what a pass is shown
    "judge"    what a run is stopped by
    "test"     what is reported beside it, and was looked at by nobody

Crops of photos, lines and pages of text, windows of speech, as each model wants them prepared. Text of the last two is
drawn from the same words, of which the first has none. Where there is no such thing for a model (tracings of brains,
say), numbers are drawn: nothing can be said about its answers then, only whether it runs and how fast. Word pieces are
drawn evenly from the vocabulary's whole words, since no tokenizer comes with the zoo: tokens, but no sentences.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from _int8_data import RECIPES, Recipe
from _pictures import crops, lines, pages, photos
from _zoo import feeds, open_plain
from zoo.fetch import default_folder

Feeds = dict[str, np.ndarray]
PARTS = ("decide", "judge", "test")
SHARES = (0.6, 0.8, 1.0)
"""Where the parts end, as shares of what there is."""
PHOTOS = ("photos", "photos-sklearn", "imagenet-20", "cifar10-20", "cifar100-20")
RATE = 16000
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)

MORE: Mapping[str, Recipe] = {
    "malware-resnet18": Recipe("photo", (224, 224), stats=IMAGENET),
    "nsfw-resnet50-tf": Recipe("photo", (224, 224), 1.0, ((104, 117, 123), (1, 1, 1)), bgr=True, nhwc=True),
    "captcha-crnn": Recipe("line", (160, 60), 1.0, bgr=True),
    "vcb-captcha": Recipe("line", (155, 50), nhwc=True),
    "mlsd-tiny": Recipe("photo", (320, 320), 1.0, nhwc=True),
    "blazeface-back": Recipe("photo", (256, 256), 127.5, ((1,) * 3, (1,) * 3), nhwc=True),
    "craft": Recipe("page", (256, 256), stats=IMAGENET),
    "light-resnet50": Recipe("photo", (224, 224), stats=IMAGENET),
    "light-densenet121": Recipe("photo", (224, 224), stats=IMAGENET),
    "light-shufflenet": Recipe("photo", (224, 224), stats=IMAGENET),
    "light-squeezenet": Recipe("photo", (224, 224), stats=IMAGENET),
    "tiny-resnet8": Recipe("photo", (32, 32)),
    "cifar10-cnn": Recipe("photo", (32, 32), 1.0),
}
GREY: Mapping[str, Recipe] = {
    "ddddocr-common": Recipe("line", (160, 64), stats=HALF),
    "terrain-unet": Recipe("photo", (128, 128), stats=HALF),
}
SPEECH = ("oww-embedding", "oww-melspectrogram", "silero-vad", "silero-vad-ifless", "basic-pitch", "dnsmos", "swift-f0")
TOKENS = ("minilm-l3",)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Samples of one part.

    Attributes:
        kind: "photo", "line", "page", "speech", "tokens", or "random" where nothing is said about answers.
        arrays: By input, samples along the first axis; inputs that the table gives a value are left out.
        origins: Which photo, line or stretch a sample is from.
    """

    kind: str
    arrays: Feeds
    origins: np.ndarray

    def __len__(self) -> int:
        return len(self.origins)

    def each(self, session: ort.InferenceSession, entry: Mapping[str, Any]) -> Iterator[Feeds]:
        """Sample by sample as the model takes them: at the shapes of the zoo's table, with its values."""
        filled = feeds(session, entry, 0)
        for number in range(len(self)):
            mine = {name: each[number].reshape(filled[name].shape) for name, each in self.arrays.items()}
            yield {**filled, **mine}


def draw(name: str, path: Path, entry: Mapping[str, Any], part: str, count: int) -> Inputs:
    """Samples of a part for a model of the zoo.

    Args:
        name: Of the model.
        path: Its file.
        entry: Its row of the table.
        part: A word of `PARTS`.
        count: How many.

    Raises:
        SystemExit: where the photos or the recording are missing.
    """
    recipe = RECIPES.get(name) or MORE.get(name) or GREY.get(name)
    example = entry["example_shape"]
    seed = PARTS.index(part)
    session = open_plain(path)
    first = session.get_inputs()[0].name
    if recipe is not None:
        pictures, origins = _pictures(recipe, part, count, seed)
        if name in GREY:
            pictures = pictures.mean(1, keepdims=True).astype(np.float32)
        if name == "mlsd-tiny":  # its fourth channel is the alpha of a whole picture
            pictures = np.concatenate([pictures, np.ones_like(pictures[..., :1])], -1)
        arrays, kind = {first: pictures}, recipe.kind
    elif name in SPEECH:
        (length,) = (RATE * 2,) if name == "oww-embedding" else (int(np.prod(example[first]["shape"])),)
        sound, origins = speech(length, part, count, seed)
        arrays, kind = {first: _heard(name, sound)}, "speech"
        arrays[first] = arrays[first].reshape(count, *_row(example[first]["shape"]))
    elif name in TOKENS:
        rng = np.random.default_rng(seed)
        tokens = rng.integers(2000, 30000, (count, example[first]["shape"][-1]))
        tokens[:, 0], tokens[:, -1] = 101, 102  # [CLS] and [SEP]
        arrays, kind, origins = {first: tokens.astype(np.int64)}, "tokens", np.arange(count)
    else:
        drawn = [feeds(session, entry, 1000 * seed + number) for number in range(count)]
        free = [key for key, one in example.items() if "value" not in one]
        arrays = {key: np.stack([each[key].reshape(_row(example[key]["shape"])) for each in drawn]) for key in free}
        kind, origins = "random", np.arange(count)
    return Inputs(kind, arrays, origins)


def _row(shape: list[int]) -> tuple[int, ...]:
    """The shape of one sample: without a leading axis of one, where there is one."""
    return tuple(shape[1:]) if shape and shape[0] == 1 else tuple(shape)


def _pictures(recipe: Recipe, part: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Prepared pictures in float32 and their origins."""
    size = recipe.size[::-1]
    if recipe.kind == "line":
        drawn, origins = lines(count, size, seed, judging=part != "decide"), np.arange(count)
    else:
        every = photos(*PHOTOS)
        # every fifth is for judging, every fifth for the test, so that each part has something of each set
        mine = [p for i, p in enumerate(every) if PARTS[(0, 0, 0, 1, 2)[i % 5]] == part]
        origins = np.arange(count) % len(mine)
        drawn = crops(mine, count, size, seed)
        if recipe.kind == "page":
            drawn = pages(drawn, seed, judging=part != "decide")
    pictures = drawn.astype(np.float32)
    pictures = pictures[..., ::-1] if recipe.bgr else pictures
    pictures = pictures / np.float32(recipe.scale)
    if recipe.stats is not None:
        mean, std = (np.asarray(each, np.float32) for each in recipe.stats)
        pictures = (pictures - mean) / std
    laid = pictures if recipe.nhwc else pictures.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(laid, np.float32), origins


def speech(length: int, part: str, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of a recording at random loudness with a little noise, [count, length] in [-1, 1], and their origins.

    The parts are stretches of the recording that do not touch; a window longer than its stretch goes round in it.
    """
    path = default_folder() / "data" / "speech" / "beckett.wav"
    if not path.exists():
        raise SystemExit("no recording: python bench/zoo/fetch.py --data speech")
    with wave.open(str(path)) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    ends = [0, *(int(share * len(sound)) for share in SHARES)]
    mine = sound[ends[PARTS.index(part)] : ends[PARTS.index(part) + 1]]
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, len(mine), count)
    windows = np.stack([np.take(mine, np.arange(start, start + length), mode="wrap") for start in starts])
    windows *= np.exp(rng.uniform(-1.5, 0.5, (count, 1))).astype(np.float32)
    windows += rng.standard_normal(windows.shape).astype(np.float32) * rng.uniform(0, 0.01, (count, 1)).astype("f")
    return np.clip(windows, -1, 1).astype(np.float32), np.arange(count)


def _heard(name: str, sound: np.ndarray) -> np.ndarray:
    """What a model takes of windows of sound."""
    if not name.startswith("oww"):
        return sound
    loud = sound * np.float32(32767)
    if name == "oww-melspectrogram":
        return loud
    path = default_folder() / "oww-melspectrogram.onnx"
    if not path.exists():
        raise SystemExit(
            "oww-embedding reads what oww-melspectrogram makes: python bench/zoo/fetch.py oww-melspectrogram"
        )
    session = open_plain(path)
    feed = session.get_inputs()[0].name
    found = [session.run(None, {feed: each[None]})[0].reshape(-1, 32)[:76] for each in loud]
    return np.stack(found).astype(np.float32) / 10 + 2
