"""`[data]` from the recipe to the report: keys, settings, what passes may decide on, and what is warned of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxslim_core.passes import prune_channels

from onnxslim_core import _feeds
from onnxslim_core._feeds import open_feeds
from onnxslim_core.calibration.spec import DataInput
from onnxslim_core.cli import main
from onnxslim_core.errors import DataError, RecipeError
from onnxslim_core.measure.truth import Plain
from onnxslim_core.model import load
from onnxslim_core.pipeline import Result, compress
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import Report
from onnxslim_core.rewrite import Change, Context, Kind

Image = pytest.importorskip("PIL.Image")

STEP = '[[pass]]\nname = "normalize"\n'
PRUNE = '[[pass]]\nname = "prune_channels"\ncriterion = "obs"\nallocation = "macs"\ntarget = 0.7\nround_to = 1\n'


def net(size: int | str = 12) -> onnx.ModelProto:
    """X [n, 3, size, size] -> Conv 12 -> Relu -> Conv 8 -> Relu -> mean -> y [n, 8]."""
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((12, 3, 3, 3)), "w2": rng.standard_normal((8, 12, 3, 3)) / 6}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "act"),
        helper.make_node("Conv", ["r", "w2"], ["b"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["b"], ["s"], "act2"),
        helper.make_node("GlobalAveragePool", ["s"], ["y"], "pool"),
    ]
    initializers = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, size, size])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8, 1, 1])
    graph = helper.make_graph(nodes, "net", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def waves(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth random picture; uint8 [height, width, 3]."""
    across, down = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    parts = [np.sin(rng.uniform(-9, 9) * across + rng.uniform(-9, 9) * down + rng.uniform(0, 6)) for _ in range(9)]
    pixels = np.reshape(parts, (3, 3, height, width)).sum(0).transpose(1, 2, 0) * 40 + 128
    return np.asarray(np.clip(pixels, 0, 255), np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for number in range(8):
        Image.fromarray(waves(rng, 40, 50)).save(folder / f"{number}.png")
    return folder


def squeeze(recipe: Recipe | str, data: Any = None, **options: Any) -> Result:
    plan = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    return compress(options.pop("model", net()), plan, data=data, measure_latency=False, **options)


# --- keys


def test_every_key() -> None:
    recipe = Recipe.parse(
        """
[data]
source = "photos"
crops = 1024
flips = false
labels = "folder"
origins = "file"
force_random = true
[data.inputs.image]
size = 224
resize = "letterbox"
resize_to = 256
interpolation = "bicubic"
crop = "random"
channels = "BGR"
layout = "NHWC"
fill = 0
dtype = "float32"
range = [-1, 1]
[data.inputs.ratio]
value = [1.0, 2.0]
"""
        + STEP
    )
    data = recipe.data
    assert (data.crops, data.flips, data.labels, data.origins, data.force_random) == (
        1024,
        False,
        "folder",
        "file",
        True,
    )
    assert data.inputs["image"] == DataInput(
        None,
        "NHWC",
        255.0,
        (0.5,),
        (0.5,),
        "float32",
        None,
        (224, 224),
        "letterbox",
        256,
        "bicubic",
        "random",
        "BGR",
        0,
    )
    assert data.inputs["ratio"].value == [1.0, 2.0]


def test_a_range_is_the_scale_mean_and_std_it_stands_for() -> None:
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (-2.5, 0.5)):
        entry = Recipe.parse(f"[data.inputs.x]\nrange = [{low}, {high}]\n{STEP}").data.inputs["x"]
        assert entry.scale is not None
        ends = (np.array([0.0, 255.0]) / entry.scale - entry.mean[0]) / entry.std[0]
        np.testing.assert_allclose(ends, [low, high])


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("[data]\ncrop = 3", "unknown key 'crop'; did you mean 'crops'?"),
        ("[data]\ncrops = 0", "'crops' is 0, allowed is 1 and above"),
        ("[data]\ncrops = 4\nsamples = 4", "'samples' and 'crops' exclude each other"),
        ('[data]\nsource = ""', "'source' is empty"),
        ("[data]\nheld_out = 1.0", "'held_out' is 1, a share between 0 and 1"),
        ("[data]\nflips = 1", "'flips' is 1, not true or false"),
        ("[data.inputs.x]\nresize = 'strech'", "unknown resize 'strech'; did you mean 'stretch'?"),
        ("[data.inputs.x]\nchannels = 'rgb'", "unknown channels 'rgb'"),
        ("[data.inputs.x]\nsize = [1, 2, 3]", "'size' is [1, 2, 3]"),
        ("[data.inputs.x]\nsize = [0, 2]", "numbers of pixels from 1"),
        ("[data.inputs.x]\nfill = 256", "a grey level from 0 to 255"),
        ("[data.inputs.x]\nrange = [1, 0]", "the second is to be larger"),
        ("[data.inputs.x]\nrange = [0, 1]\nmean = [1.0]", "'range' says what mean would say"),
        ("[data.inputs.x]\ncolour = 'RGB'", "unknown key 'colour'"),
        ("[data.inputs.x]\nvalue = {a = 1}", "'value' is a table"),
    ],
)
def test_refuses_keys(text: str, needle: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f"{text}\n{STEP}")
    assert any(needle in line for line in caught.value.errors), caught.value.errors


def test_settings_reach_the_data() -> None:
    recipe = Recipe.parse(f'[data]\nsamples = 5\n[data.inputs."a.b"]\nscale = 255\nmean = [0.5]\n{STEP}')
    changed = recipe.with_settings(["data.crops=1024", "data.inputs.a.b.crop=random", "data.inputs.c.size=[4, 5]"])
    assert (changed.data.crops, changed.data.samples) == (1024, None)
    assert changed.data.inputs["a.b"] == DataInput(scale=255.0, mean=(0.5,), crop="random")
    assert changed.data.inputs["c"].size == (4, 5)
    assert recipe.data.crops is None
    with pytest.raises(RecipeError) as caught:
        recipe.with_settings(["data.crosp=3", "data.inputs.a.b.crop=middle", "data.samples=many"])
    assert len(caught.value.errors) == 3
    assert "did you mean 'crops'" in caught.value.errors[0]


# --- what passes are handed


@dataclass(frozen=True)
class Look:
    """A pass that only looks at what it is handed."""

    name: ClassVar[str] = "prune_channels"
    kind: ClassVar[Kind] = Kind.LOSSY
    seen: ClassVar[list[Context]] = []

    def run(self, model: object, context: Context) -> list[Change]:
        self.seen.append(context)
        return []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Context]:
    Look.seen.clear()
    monkeypatch.setattr(prune_channels, "PruneChannels", Look)
    return Look.seen


LOOK = '[[pass]]\nname = "prune_channels"\n'


def test_origins_reach_the_passes(photos: Path, seen: list[Context]) -> None:
    report = squeeze(f"[data]\ncrops = 64\n{LOOK}", photos).report
    context = seen[-1]
    assert context.samples_are_real
    assert len(context.origins) == len(context.samples) == report.data.deciding == 32
    assert len(set(context.origins)) == report.data.origins == 4
    assert report.data.judging == 32 and report.data.digest


def test_assumptions_and_shortage_are_in_the_report(photos: Path, seen: list[Context]) -> None:
    result = squeeze(f"[data]\ncrops = 64\n{LOOK}", photos)
    assert any("4 different samples" in line and "12 channels" in line for line in result.report.data.warnings)
    assert 'crop = "center"' not in ", ".join(result.report.data.assumed)  # crops say it
    assert "scale = 255" in ", ".join(result.report.data.assumed)
    assert Report.from_json(result.report.to_json()).data == result.report.data
    exact = squeeze(f"[data]\ncrops = 64\n{STEP}", photos)
    assert exact.report.data.warnings == ()


def test_enough_images_are_not_warned_of(tmp_path: Path, seen: list[Context]) -> None:
    rng = np.random.default_rng(1)
    x = np.stack([waves(rng, 12, 12) for _ in range(40)])
    plan = f'[data.inputs.x]\nlayout = "NHWC"\nscale = 255\n{LOOK}'
    assert squeeze(plan, {"x": x}).report.data.warnings == ()


def test_random_numbers_are_no_ground_to_decide_on(seen: list[Context]) -> None:
    report = squeeze(LOOK).report
    assert not seen[-1].samples_are_real and not seen[-1].origins
    assert any("NO DATA" in line for line in report.data.warnings)
    squeeze(f"[data]\nforce_random = true\n{LOOK}")
    assert seen[-1].samples_are_real


def test_noise_is_no_ground_to_decide_on(seen: list[Context]) -> None:
    x = np.random.default_rng(0).standard_normal((32, 3, 12, 12)).astype(np.float32)
    report = squeeze(LOOK, {"x": x}).report
    assert not seen[-1].samples_are_real
    assert any("LOOKS LIKE NOISE" in line for line in report.data.warnings)
    squeeze(f"[data]\nforce_random = true\n{LOOK}", {"x": x})
    assert seen[-1].samples_are_real


def test_crops_of_one_photo_leave_nothing_to_decide_with(photos: Path, seen: list[Context]) -> None:
    report = squeeze(f"[data]\ncrops = 32\n{LOOK}", photos / "3.png").report
    assert not seen[-1].samples_are_real
    assert (report.data.deciding, report.data.judging) == (0, 32)
    assert "32 samples of one image or recording" in report.data.note


def test_less_may_be_held_out(photos: Path, seen: list[Context]) -> None:
    report = squeeze(f"[data]\ncrops = 64\nheld_out = 0.25\n{LOOK}", photos).report
    assert (report.data.deciding, report.data.judging, report.data.origins) == (48, 16, 6)


def test_other_samples_may_judge(photos: Path, tmp_path: Path, seen: list[Context]) -> None:
    rng = np.random.default_rng(5)
    (tmp_path / "others").mkdir()
    for number in range(3):
        Image.fromarray(waves(rng, 20, 20)).save(tmp_path / "others" / f"{number}.png")
    plan = Recipe.parse(f'[data]\ncrops = 64\njudging = "others"\n{LOOK}', folder=tmp_path)
    report = squeeze(plan, photos).report
    assert (report.data.deciding, report.data.judging, report.data.origins) == (64, 3, 8)
    (tmp_path / "others" / "copy.png").write_bytes((photos / "5.png").read_bytes())
    with pytest.raises(DataError, match="1 samples of others are also in photos: what decides must not judge"):
        squeeze(plan, photos)


def test_costly_models_are_decided_on_fewer_samples_but_not_on_a_dozen(
    seen: list[Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(1)
    x = np.stack([waves(rng, 12, 12) for _ in range(200)])
    plan = f'[data.inputs.x]\nlayout = "NHWC"\nscale = 255\n{LOOK}'
    used = squeeze(plan, {"x": x}).report.data
    assert (used.deciding, used.judging) == (100, 100)
    for name in ("DECIDING_MACS", "JUDGING_MACS"):
        monkeypatch.setattr(_feeds, name, 1)
    used = squeeze(plan, {"x": x}).report.data
    assert (used.deciding, used.judging) == (48, 16) == (len(seen[-1].samples), 16)
    used = squeeze(f"[data]\nmax_samples = 160\n{plan}", {"x": x}).report.data
    assert (used.deciding, used.judging) == (80, 80)  # as many as it says


# --- the whole way


def test_prunes_on_photos_and_refuses_noise_unless_forced(photos: Path) -> None:
    done = squeeze(f"[data]\ncrops = 96\n{PRUNE}", photos).report
    assert done.outcome == "compressed"
    noise = np.random.default_rng(0).standard_normal((64, 3, 12, 12)).astype(np.float32)
    refused = squeeze(PRUNE, {"x": noise}).report
    assert [step.outcome for step in refused.steps if not step.exact] == ["refused"]
    assert squeeze(f"[data]\nforce_random = true\n{PRUNE}", {"x": noise}).report.outcome == "compressed"
    assert [step.outcome for step in squeeze(PRUNE).report.steps if not step.exact] == ["refused"]
    weights_alone = '[[pass]]\nname = "prune_channels"\nratio = 0.5\nround_to = 1\n'
    assert squeeze(weights_alone).report.outcome == "compressed"  # l2 needs no data, by design


def test_the_same_crops_give_the_same_bytes(photos: Path) -> None:
    plan = f"[data]\ncrops = 48\n{PRUNE}"
    first, second = (squeeze(plan, photos) for _ in range(2))
    assert first.model.to_proto().SerializeToString() == second.model.to_proto().SerializeToString()
    assert first.report.data.digest == second.report.data.digest


def test_sizes_from_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(net("s"), tmp_path / "a.onnx")
    common = [str(tmp_path / "a.onnx"), "--data", str(photos)]
    assert main(["compare", common[0], *common, "--quiet"]) == 3
    assert "--shape x=1x3x224x224" in capsys.readouterr().err
    assert main(["compare", common[0], *common, "--shape", "x=1x3x12x12"]) == 0
    shown = capsys.readouterr()
    assert "8 samples of photos" in shown.out + shown.err and "assumed" in shown.out + shown.err
    arguments = ["compress", *common, "-o", str(tmp_path / "o.onnx"), "--shape", "x=1x3x12x12", "--no-latency"]
    assert main([*arguments, "--set", "data.crops=16"]) == 0
    shown = capsys.readouterr()
    assert "judged on 8 samples of photos" in shown.out + shown.err


def test_sizes_and_values_that_arrays_do_not_need_are_refused(tmp_path: Path) -> None:
    onnx.save(net(), tmp_path / "a.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((2, 3, 12, 12), np.float32))
    model = str(tmp_path / "a.onnx")
    assert main(["compare", model, model, "--data", str(tmp_path / "d.npz"), "--shape", "x=1x3x12x12"]) == 2


def test_feeds_decide_and_judge_on_different_images(photos: Path) -> None:
    recipe = Recipe.parse(f"[data]\ncrops = 40\n{PRUNE}")
    feeds = open_feeds(Plain(load(net()), 1), recipe, photos, {}, {}, 0)
    assert {sample["x"].tobytes() for sample in feeds.deciding}.isdisjoint(s["x"].tobytes() for s in feeds.judging)
    assert len(feeds.deciding) == 20 and feeds.decides


def test_the_recipe_of_the_readme_prepares_images(photos: Path) -> None:
    readme = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")
    text = readme.partition("### Your data")[2].partition("```toml\n")[2].partition("```")[0]
    recipe = Recipe.parse(text.replace("samples = 512", "samples = 8", 1).replace(".image]", ".x]") + STEP)
    assert recipe.data.source == "photos/"
    report = squeeze(recipe, photos, model=net(224)).report
    assert report.data.assumed == () and report.data.shapes == {"x": (1, 3, 224, 224)}
