"""One function per verb: options in, exit code out. What a verb needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxslim_core.cli.frame import OK, SAID_NO, Seconds, Shell, check_result, check_targets, verb, write_text
from onnxslim_core.errors import MeasureError, RecipeError

if TYPE_CHECKING:
    from onnxslim_core.model import Model
    from onnxslim_core.recipe import Recipe
    from onnxslim_core.rewrite import Sample
    from onnxslim_core.verdict.job import Samples

Function = TypeVar("Function", bound=Callable[..., Any])


def _options(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of the help text."""

    def add(function: Function) -> Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


_feeds = _options(
    click.option(
        "--data",
        metavar="D",
        help="Samples: a .npz with arrays by input name, a .npy, a folder of either, a folder or zip of images, or "
        "FILE.py:FUNCTION.",
    ),
    click.option(
        "--shape",
        "shapes",
        multiple=True,
        metavar="NAME=1x3x320x320",
        help="Size of an input, where it is random or images.",
    ),
    click.option("--value", "values", multiple=True, metavar="NAME=V", help="Content of an input, where it is random."),
)
_root = click.option(
    "--external-data-root", metavar="DIR", help="Weights may lie anywhere below this folder, also behind links."
)
_recipe_data = click.option("--recipe", metavar="R.toml", help="Take [data] and [inputs] from this recipe.")


def _parsed(shapes: Sequence[str], values: Sequence[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, object]]:
    from onnxslim_core.measure.inputs import parse_shape, parse_value

    return dict(map(parse_shape, shapes)), dict(map(parse_value, values))


def _named_files(recipe: Recipe | None) -> list[Path]:
    return [] if recipe is None else recipe.named_files


def _load(path: str, root: str | None) -> Model:
    from onnxslim_core.model import load

    return load(path, external_data_root=Path(root) if root else None, keep_feedable=True)


def _samples(
    model: Model,
    shell: Shell,
    data: str | None,
    shapes: Sequence[str],
    values: Sequence[str],
    count: int,
    recipe: Recipe | None = None,
) -> Samples:
    """Samples that fit a model, given or random."""
    from onnxslim_core.verdict.job import from_recipe, gather_samples

    sizes, contents = _parsed(shapes, values)
    spec, sizes, contents = from_recipe(recipe, None, sizes, contents, random=data is None)
    seed = shell.seed if shell.seed is not None else recipe.seed if recipe is not None else 0
    return gather_samples(model, data, spec=spec, seed=seed, shapes=sizes, values=contents, count=count)


# ---------------------------------------------------------------------------------------------------- verbs


@verb
def demo(shell: Shell) -> int:
    """Compress a small network that ships with the program."""
    from onnxslim_core.demo.run import demonstrate

    with shell.progress() as tell:
        shown = demonstrate(threads=shell.threads, seed=shell.seed or 0, progress=tell)
    shell.emit({"schema": 1, "verb": "demo", **shown.document()})
    shell.show(shown.draw)
    return OK


@verb
@click.argument("model")
@click.option("--explain", is_flag=True, help="Show what can go, group by group, and why the rest cannot.")
@_feeds
@_root
def inspect(
    shell: Shell,
    model: str,
    explain: bool,
    data: str | None,
    shapes: Sequence[str],
    values: Sequence[str],
    external_data_root: str | None,
) -> int:
    """Show inputs, outputs, operators, layers and their cost."""
    from onnxslim_core.cli.inspection import inspect as look

    loaded = _load(model, external_data_root)
    with shell.progress() as tell:
        tell("find inputs that run", 0, 0)
        sample: Sample | None = None
        note = ""
        try:
            sample = _samples(loaded, shell, data, shapes, values, 1).samples[0]
        except MeasureError as err:
            note = f"not run: {err}" + (f" ({err.hint})" if err.hint else "")
        tell("count", 0, 0)
        found = look(loaded, sample, explain=explain, note=note)
    shell.emit(found.to_json())
    shell.show(found.print_console)
    return OK


@verb
@click.argument("model")
@click.option("--output", "-o", required=True, metavar="OUT", help="Where the result is written.")
@click.option("--recipe", metavar="R.toml", help="What to do.  [default: exact passes only]")
@click.option("--preset", metavar="NAME", help="A recipe that ships with the program.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="PASS.OPTION=VALUE",
    help="Change an option of the recipe, or of [data].",
)
@click.option("--budget", metavar="B.toml", help="What the result may cost; replaces the recipe's.")
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Runs (outputs, labels) -> float for the budget's metric.")
@click.option("--report", metavar="R.json", help="Write the report here.")
@click.option("--lock", metavar="F.lock", help="Write what was decided here, for `apply`.  [default: OUT.lock]")
@click.option("--no-lock", is_flag=True, help="Write no lock.")
@click.option(
    "--pareto", is_flag=True, help="Run at several targets; write OUT-1, OUT-2, ...: what no other run beats."
)
@click.option("--targets", metavar="T,T,...", help="For --pareto.  [default: 0.9,0.8,0.7,0.6,0.5,0.4]")
@click.option("--no-verify", is_flag=True, help="Do not run the models to compare them.")
@click.option("--no-latency", is_flag=True, help="Do not measure time.")
@click.option("--allow-code", is_flag=True, help="Let the recipe run the code it names (file.py:function).")
@click.option("--keep-feedable", is_flag=True, help="Keep weights that are listed as inputs feedable.")
@_feeds
@_root
def compress(shell: Shell, model: str, output: str, report: str | None, **options: Any) -> int:
    """Make a model smaller and faster.

    Without a recipe or preset only exact passes run: the answers stay the same.
    """
    data, root = options["data"], options["external_data_root"]
    if options["targets"] is not None and not options["pareto"]:
        raise RecipeError("--targets is for --pareto")
    lock = _lock_beside(output, options["lock"], options["no_lock"])
    recipe = _chosen_recipe(options["recipe"], options["preset"], options["settings"])
    sources = (options["recipe"], options["budget"], options["metric"], data, *recipe.named_files)
    check_result(output, report, lock, sources=sources, model=model, root=root)
    from onnxslim_core.recipe import load_budget

    shapes, values = _parsed(options["shapes"], options["values"])
    common: dict[str, Any] = {
        "data": data,
        "budget": load_budget(options["budget"]) if options["budget"] is not None else None,
        "shapes": shapes,
        "values": values,
        "metric": options["metric"],
        "verify": not options["no_verify"],
        "measure_latency": not options["no_latency"],
        **{name: options[name] for name in ("allow_code", "keep_feedable", "external_data_root")},
    }
    if options["pareto"]:
        from onnxslim_core.cli.fronts import targets_of, write_front

        if options["lock"] is not None:
            raise RecipeError("--lock names one file, and --pareto writes several", "each gets its own beside it")
        targets = targets_of(options["targets"])
        return write_front(
            shell, model, output, recipe, targets, lock is not None, report=report, sources=sources, **common
        )
    from onnxslim_core.pipeline import compress_file

    with shell.progress() as tell:
        result = compress_file(
            model, output, recipe, lock=lock, threads=shell.threads, seed=shell.seed, progress=tell, **common
        )
    if report is not None:
        result.report.save(report)
    shell.emit(result.report)
    shell.show(result.report.print_console)
    if not result.passed:
        shell.say(f"nothing was written: {Path(output).name} would not meet the budget")
        return SAID_NO
    _tell_stale_lock(shell, output, lock)
    return OK


def _lock_beside(output: str, lock: str | None, none: bool) -> str | None:
    """Where the lock of a run goes."""
    if none and lock is not None:
        raise RecipeError("--lock and --no-lock exclude each other")
    return None if none else lock if lock is not None else f"{output}.lock"


def _tell_stale_lock(shell: Shell, output: str, lock: str | None) -> None:
    """Say so where the lock that lies beside a result is not the result's."""
    beside = Path(f"{output}.lock")
    if lock is None or beside.resolve() != Path(lock).resolve():
        shell.tell_stale(beside)


def _chosen_recipe(path: str | None, preset: str | None, settings: Sequence[str]) -> Recipe:
    from onnxslim_core.recipe import Recipe

    if path is not None and preset is not None:
        raise RecipeError("--recipe and --preset exclude each other", "change a preset's options by --set")
    recipe = Recipe.load(path) if path is not None else Recipe.preset(preset) if preset is not None else Recipe.exact()
    return recipe.with_settings(settings)


@verb
@click.argument("lock")
@click.argument("model")
@click.option("--output", "-o", required=True, metavar="OUT", help="Where the result is written.")
@_root
def apply(shell: Shell, lock: str, model: str, output: str, external_data_root: str | None) -> int:
    """Make the result of an earlier run again, from its lock.

    Takes the model that was compressed then, and neither samples nor time: the same bytes come out, or an error.
    """
    check_result(output, sources=(lock,), model=model, root=external_data_root)
    from onnxslim_core.lock import apply as replay

    applied = replay(lock, model, external_data_root=external_data_root)
    checked = applied.save(output, threads=shell.threads)
    record = applied.record
    shell.emit(
        {
            "schema": 1,
            "verb": "apply",
            "given": record.given,
            "made": record.made,
            "outcome": record.outcome,
            "verified": record.verified,
            "checked": checked,
            "notes": applied.notes,
        }
    )
    for note in applied.notes:
        shell.say(note)
    shell.say(f"{Path(output).name} is bit for bit the result that was locked; it {checked}")
    _tell_stale_lock(shell, output, lock)
    return OK


@verb
@click.argument("reference")
@click.argument("candidate")
@_recipe_data
@_feeds
@_root
def compare(
    shell: Shell,
    reference: str,
    candidate: str,
    recipe: str | None,
    data: str | None,
    shapes: Sequence[str],
    values: Sequence[str],
    external_data_root: str | None,
) -> int:
    """Show how far the answers of two models are apart."""
    from onnxslim_core.cli.views import print_fidelity
    from onnxslim_core.measure.fidelity import compare as compare_answers
    from onnxslim_core.recipe import Recipe

    how = Recipe.load(recipe) if recipe is not None else None
    first, second = _load(reference, external_data_root), _load(candidate, external_data_root)
    with shell.progress() as tell:
        tell("find inputs that run", 0, 0)
        fed = _samples(first, shell, data, shapes, values, 8, how)
        tell("compare answers", 0, 0)
        found = compare_answers(first, second, fed.samples, threads=shell.threads)
    shell.emit({"schema": 1, "verb": "compare", "data": fed.document(), "fidelity": found})
    shell.show(lambda console: print_fidelity(console, found, fed.said))
    return OK


@verb
@click.argument("first", metavar="A")
@click.argument("second", metavar="[B]", required=False)
@click.option("--seconds", type=Seconds(0.5, 3600), default=20.0, show_default=True, help="Spent on timing.")
@_feeds
@_root
def bench(
    shell: Shell,
    first: str,
    second: str | None,
    seconds: float,
    data: str | None,
    shapes: Sequence[str],
    values: Sequence[str],
    external_data_root: str | None,
) -> int:
    """Time a model, or two against each other.

    Two models are called in turn, in freshly built sessions, and the ratio comes with an interval.
    """
    from onnxslim_core.cli.views import print_alone, print_latency
    from onnxslim_core.measure import latency

    model = _load(first, external_data_root)
    other = _load(second, external_data_root) if second is not None else None
    with shell.progress() as tell:
        tell("find inputs that run", 0, 0)
        fed = _samples(model, shell, data, shapes, values, 1)
        how: dict[str, Any] = {"threads": shell.threads, "seconds": seconds, "seed": shell.seed or 0, "progress": tell}
        head = {"schema": 1, "verb": "bench", "data": fed.document()}
        if other is None:
            alone = latency.measure_alone(model, fed.samples[0], **how)
        else:
            pair = latency.compare_latency(model, other, fed.samples[0], **how)
    if other is None:
        shell.emit({**head, "alone": alone})
        shell.show(lambda console: print_alone(console, alone, Path(first).name))
        return OK
    shell.emit({**head, "latency": pair, "verdict": pair.verdict})
    shell.show(lambda console: print_latency(console, pair, Path(first).name, Path(str(second)).name))
    return OK


@verb
@click.argument("reference")
@click.argument("candidate")
@click.option("--budget", required=True, metavar="B.toml", help="What the candidate may cost.")
@click.option("--junit", metavar="F.xml", help="Write the verdict as JUnit XML.")
@click.option("--markdown", metavar="F.md", help="Write the verdict as Markdown, for a CI page.")
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Runs (outputs, labels) -> float for the budget's metric.")
@click.option("--labels", metavar="NAME", help="The array of labels in the data, for the metric.")
@click.option("--samples", type=click.IntRange(1), default=256, show_default=True, help="At most so many of the data.")
@click.option(
    "--max-seconds",
    type=Seconds(1, 3600),
    default=60.0,
    show_default=True,
    help="How long to time before a timing is called inconclusive.",
)
@_recipe_data
@_feeds
@_root
def gate(shell: Shell, reference: str, candidate: str, budget: str, **options: Any) -> int:
    """Say yes or no to a candidate by a budget.

    Exit code 0 if the candidate keeps to the budget, 1 if it does not or if that stays open.
    """
    from onnxslim_core.recipe import Recipe, load_budget
    from onnxslim_core.verdict import gate as judge

    recipe = Recipe.load(options["recipe"]) if options["recipe"] is not None else None
    sources = (budget, *(options[name] for name in ("data", "recipe", "metric")), *_named_files(recipe))
    models, root = (reference, candidate), options["external_data_root"]
    check_targets(options["junit"], options["markdown"], sources=sources, models=models, root=root)
    limits = load_budget(budget)
    shapes, values = _parsed(options["shapes"], options["values"])
    with shell.progress() as tell:
        verdict = judge(
            reference,
            candidate,
            limits,
            data=options["data"],
            recipe=recipe,
            threads=shell.threads,
            seed=shell.seed or 0,
            shapes=shapes,
            values=values,
            metric=options["metric"],
            labels=options["labels"],
            samples=options["samples"],
            max_seconds=options["max_seconds"],
            external_data_root=options["external_data_root"],
            progress=tell,
        )
    if options["junit"]:
        write_text(options["junit"], verdict.to_junit())
    if options["markdown"]:
        write_text(options["markdown"], verdict.to_markdown())
    shell.emit(verdict.to_json())
    shell.show(verdict.print_console)
    return verdict.exit_code


@verb
@click.argument("name", required=False)
def passes(shell: Shell, name: str | None) -> int:
    """List the passes, or explain one."""
    from onnxslim_core.cli import catalogue

    if name is None:
        rows = catalogue.all_passes()
        shell.emit({"schema": 1, "verb": "passes", "passes": rows})
        shell.show(lambda console: catalogue.print_list(console, rows))
        return OK
    page = catalogue.one_pass(name)
    shell.emit({"schema": 1, "verb": "passes", "pass": page})
    shell.show(lambda console: catalogue.print_page(console, page))
    return OK
