"""The job `sensitivity`: a model and samples in, what its parts matter out.

    load -> samples -> what is known from before -> tidy exactly -> channel graph -> a curve per group and block

Every finished curve is kept on disk (`search/memory.py`), so that an interrupted run goes on where it stopped, and the
same question asked again opens no session.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np

from onnxslim_core import __version__, _files
from onnxslim_core._checks import check_run, globs, numbers, sizes, table, whole
from onnxslim_core._feeds import NOISE_SAMPLES, sides
from onnxslim_core.calibration.code import call_source, load_metric
from onnxslim_core.calibration.diversity import looks_like_noise, shortage
from onnxslim_core.calibration.plausible import unlike_training
from onnxslim_core.calibration.source import Data, Source, open_source
from onnxslim_core.errors import DataError, RecipeError
from onnxslim_core.measure.inputs import random_samples
from onnxslim_core.measure.pieces import cache_folder
from onnxslim_core.model import Model, load, tell_nodes_apart
from onnxslim_core.passes import pass_class
from onnxslim_core.passes._groups import analysed
from onnxslim_core.recipe import Recipe
from onnxslim_core.report import machine
from onnxslim_core.rewrite import Context, Progress, Sample
from onnxslim_core.search.memory import Memory, key_of
from onnxslim_core.search.record import Sensitivity
from onnxslim_core.search.sensitivity import RATIOS, Examination, LossCurve, Point, Question

__all__ = ["Sensitivity", "sensitivity"]

_FORMAT = 1
"""Of what is kept; raised whenever the same question would be answered otherwise."""
_TIDY = ("normalize", "fold_constants", "fuse_batchnorm")
"""What compress does before it prunes, too, so that groups have the names that they have there."""
_RANDOM = 64
"""Random samples, where they are forced."""
_NO_DATA = "give --data, or for an image model a folder of some forty photos with --set data.crops=1024"


def sensitivity(
    model: object,
    *,
    data: Data | None = None,
    ratios: Sequence[float] = RATIOS,
    criterion: str = "obs",
    repair: str = "least_squares",
    round_to: int | str = 1,
    blocks: bool = True,
    only: str | Sequence[str] = (),
    probes: int = 128,
    metric: Callable[..., float] | str | None = None,
    labels: str | None = None,
    recipe: Recipe | str | Path | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    values: Mapping[str, object] | None = None,
    threads: int = 1,
    seed: int | None = None,
    external_data_root: str | Path | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """What the answers lose when a share of one group of channels goes, or one residual block, and nothing else.

    Args:
        model: A path, bytes, a proto, a graph or a `Model`; it is not changed.
        data: Samples without labels; half of them choose channels and mend, of the others up to `probes` measure.
        ratios: Shares of a group that go.
        criterion: Which channels go first.
        repair: How readers are mended, or `none`.
        round_to: 1: any width; `auto`: widths on the CPU's grid; or a number of channels.
        blocks: Whether residual blocks are asked about, too.
        only: Globs over names of groups, blocks and nodes; empty: all.
        probes: At most so many samples measure what is lost.
        metric: A user's metric, (outputs, labels) -> float, or `file.py:function`; what it says of every cut is then
            in `Point.metric`. A function that is no file keeps nothing for later runs.
        labels: The array of labels in the data, for the metric.
        recipe: One, its file or the name of a preset. Its `[data]` and `[inputs]` say how the data is prepared; nothing
            else of it is used.
        shapes: Sizes of image inputs that the model leaves open.
        values: What inputs are fed that the data has nothing for.
        threads: For onnxruntime and BLAS.
        seed: Over the recipe's.
        external_data_root: A folder from which external data may be read.
        progress: Told (step, done, total).

    Raises:
        RecipeError: if an option is wrong.
        ModelError: if the model is missing, broken or not supported.
        DataError: if there is no data, or it is broken, does not fit or looks like noise.
        MeasureError: if the model does not run.
    """
    started = time.monotonic()
    tell = progress or (lambda _step, _done, _total: None)
    recipe = Recipe.exact() if recipe is None else Recipe.of(recipe)
    check_run(threads=threads, seed=seed)
    seed = recipe.seed if seed is None else seed
    question = Question(
        ratios=numbers("ratios", ratios),
        round_to=round_to,
        criterion=criterion,
        repair=repair,
        blocks=blocks,
        only=globs("only", only),
        probes=whole("probes", probes, 1),
        seed=seed,
    )
    own_sizes, own_fills = sizes(shapes), table("values", values)
    scorer = load_metric(metric)
    if labels is not None:
        recipe = dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, labels=labels))
    given = _given(data, recipe)
    tell("load", 0, 0)
    root = None if external_data_root is None else Path(external_data_root)
    loaded = load(model, external_data_root=root)
    tell_nodes_apart(loaded)
    tell("samples", 0, 0)
    feeds = _feeds(loaded, given, recipe, own_sizes, own_fills, seed)
    folder = cache_folder() if metric is None or isinstance(metric, str) else None
    told = [_FORMAT, _versions(), _files.digest(loaded.pieces()), question, feeds.digest]
    memory = Memory("sensitivity", key_of([*told, _metric_print(metric, feeds)]), folder)
    head, known = memory.get("head"), _known(memory)
    from_cache = len(known)
    if head is None or len(known) < len(head["units"]):
        try:
            head = _examine(loaded, feeds, question, scorer, memory, known, threads, tell)
        except KeyboardInterrupt as err:
            if memory.keeps:
                err.add_note("the curves found so far are kept; the same command goes on from there")
            raise
    return Sensitivity(
        model=loaded.source.name if loaded.source is not None else "a model in memory",
        question=question,
        data=feeds.said,
        decided_on=head["decided_on"],
        measured_on=head["measured_on"],
        curves=tuple(known[number] for number in range(len(head["units"]))),
        skipped=head["skipped"],
        baseline=head["baseline"],
        warnings=tuple(head["warnings"]),
        from_cache=from_cache,
        machine=machine(),
        seconds=time.monotonic() - started,
    )


# ---------------------------------------------------------------------------------------------------- samples
@dataclass(frozen=True, slots=True)
class _Feeds:
    """Samples before they are cut in two.

    Attributes:
        source: Given samples; None where random ones are forced.
        drawn: Those.
        judging: Samples that the recipe sets apart to measure on; None: a share of the source.
        spec: How large a share.
        said: In words.
        digest: Of all of them.
    """

    source: Source | None
    drawn: Sequence[Sample]
    judging: Source | None
    recipe: Recipe
    said: str
    digest: str

    def split(self, model: Model, probes: int) -> tuple[Sequence[Sample], Sequence[Sample], list[int], Any]:
        """Samples to decide with, and at most so many others to measure on, origins of the first, labels of the others.

        Raises:
            DataError: if nothing is left to decide with, or it looks like noise.
        """
        forced = self.recipe.data.force_random
        if self.source is None:
            half = len(self.drawn) // 2
            return self.drawn[:half], self.drawn[half:][:probes], [], None
        source = self.source
        deciding, judging = sides(source, self.judging, model, self.recipe)
        if not len(deciding):
            what = "one sample" if len(judging) == 1 else f"{len(judging)} samples of one image or recording"
            raise DataError(f"{source.name}: {what}, and nothing is left to decide with", "give samples that differ")
        if not forced and looks_like_noise(judging.first(NOISE_SAMPLES)):
            text = "the data looks like noise: neighbouring pixels do not correlate"
            raise DataError(text, "--set data.force_random=true says that it is meant to be like that")
        judging = judging.first(probes)
        return deciding, judging, deciding.origins, judging.labels


def _given(data: Data | None, recipe: Recipe) -> Data | None:
    """What to read samples from: what the caller names, else what the recipe does.

    Raises:
        DataError: if nobody names any, and random numbers are not forced.
        RecipeError: if a recipe names code, which only the caller may.
    """
    if isinstance(data, str) and ".py:" in data:
        found: Data = call_source(data, Path.cwd())  # naming it is the permission to run it
        return found
    named = recipe.data.source
    if data is None and named is not None:
        if ".py:" in named:
            raise RecipeError(f"the recipe's source '{named}' is code", "name it by --data to let it run")
        return (recipe.data.folder or Path()) / named
    if data is None and not recipe.data.force_random:
        raise DataError("sensitivity needs samples of real inputs, and no data is given", _NO_DATA)
    return data


def _feeds(
    model: Model,
    data: Data | None,
    recipe: Recipe,
    shapes: dict[str, tuple[int, ...]],
    values: dict[str, object],
    seed: int,
) -> _Feeds:
    known = {name: spec.shape for name, spec in recipe.inputs.items() if spec.shape is not None} | shapes
    fills = {name: spec.value for name, spec in recipe.inputs.items() if spec.value is not None} | values
    if data is None:
        count = recipe.data.samples or recipe.data.max_samples or _RANDOM
        drawn = random_samples(model, count=max(count, 2), seed=seed, shapes=known, values=fills)
        said = f"{len(drawn)} seeded random inputs (seed {seed}), forced"
        return _Feeds(None, drawn, None, recipe, said, key_of([seed, known, fills, len(drawn)]))
    source = open_source(data, model, recipe.data, seed=seed, shapes=known, values=fills)
    if idle := [name for name in (*shapes, *values) if not source.uses(name)]:
        text = f"size or value of '{idle[0]}' is for random inputs, and data was given"
        raise RecipeError(text, "leave one of them out")
    judging = None
    if recipe.data.judging is not None:
        most = recipe.data.max_samples or recipe.data.samples or recipe.data.crops
        spec = dataclasses.replace(recipe.data, samples=None, crops=None, max_samples=most)
        path = (recipe.data.folder or Path.cwd()) / recipe.data.judging
        judging = open_source(path, model, spec, seed=seed, shapes=known, values=fills)
        if count := judging.common(source):
            text = f"{count} samples of {judging.name} are also in {source.name}: what decides must not judge"
            raise DataError(text, "leave them out of one of the two")
    said = source.name + (f" (assumed: {', '.join(source.assumed)})" if source.assumed else "")
    digest = key_of([source.digest, source.origins, recipe.data.held_out, judging.digest if judging else None])
    return _Feeds(source, (), judging, recipe, said, digest)


# ---------------------------------------------------------------------------------------------------- the work
def _examine(
    model: Model,
    feeds: _Feeds,
    question: Question,
    metric: Callable[..., float] | None,
    memory: Memory,
    known: dict[int, LossCurve],
    threads: int,
    tell: Progress,
) -> Mapping[str, Any]:
    """Find out what is not known yet, and keep it; returns what holds for all curves."""
    fit, probes, origins, labels = feeds.split(model, question.probes)
    tell("tidy", 0, 0)
    work = load(model)
    context = Context(samples=[fit[0]], seed=question.seed, threads=threads)
    for name in _TIDY:
        pass_class(name)().run(work.ir, context)
    share = question.ratios[len(question.ratios) // 2]
    examined = Examination(analysed(work.ir, context, share), question)
    if question.only and not examined.units and not examined.skipped:
        text = f"no group or block is called like {', '.join(repr(glob) for glob in question.only)}"
        raise RecipeError(text, "onnxslim-core inspect MODEL --explain lists the groups")
    warnings = [shortage(origins, examined.widest)]
    if feeds.source is not None:
        warnings.append(unlike_training(work.ir, cast("Source", fit)))
    head = {
        "units": [unit.name for unit in examined.units],
        "skipped": dict(examined.skipped),
        "decided_on": len(fit),
        "measured_on": len(probes),
        "warnings": [text for text in warnings if text],
        "baseline": None,
    }
    kept = False
    for number, curve in examined.curves(
        fit,
        probes,
        origins=origins,
        known=lambda number: number in known,
        metric=metric,
        labels=labels,
        threads=threads,
        progress=tell,
    ):
        if not kept:
            head["baseline"], kept = examined.baseline, True
            memory.put("head", head)
        known[number] = curve
        memory.put(str(number), dataclasses.asdict(curve))
    if not kept:
        memory.put("head", head)
    return head


def _known(memory: Memory) -> dict[int, LossCurve]:
    """The curves that an earlier run found; one that does not read back as a curve is no curve."""
    found: dict[int, LossCurve] = {}
    number = 0
    head = memory.get("head")
    for number in range(len(head["units"]) if head is not None else 0):
        if (told := memory.get(str(number))) is None:
            continue
        points = tuple(Point(**point) for point in told["points"])
        found[number] = LossCurve(**{**told, "points": points})
    return found


def _metric_print(metric: Callable[..., float] | str | None, feeds: _Feeds) -> list[object]:
    """What the metric says depends on: the text of its file, and the labels."""
    if not isinstance(metric, str):
        return []
    file, _, function = metric.rpartition(":")
    labels = None if feeds.source is None else (feeds.judging or feeds.source).labels
    prints = [key_of([array.dtype.str, array.shape, array.tobytes().hex()]) for array in map(np.asarray, labels or ())]
    return [_files.digest_of_file(Path.cwd() / file), function, prints]


def _versions() -> list[str]:
    found = [__version__]
    for name in ("onnxruntime", "numpy"):
        try:
            found.append(version(name))
        except PackageNotFoundError:
            found.append("")
    return found
