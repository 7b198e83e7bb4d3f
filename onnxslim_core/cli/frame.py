"""What all verbs share: their options, errors and exit codes, what goes to which stream, progress.

Results go to stdout, everything else to stderr; with `--json` stdout holds one JSON document and nothing else, also
when the verb fails. Exit codes: 0 done or gate passed, 1 a gate or budget said no, 2 usage, recipe or budget file,
3 a model or data that is missing, broken, unsupported or cannot run, or no room for the result, 4 our own bug,
130 interrupted.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from onnxslim_core import __version__, _interrupts
from onnxslim_core._paths import landing, write_whole
from onnxslim_core.errors import InternalError, OutputError, RecipeError, SlimError

if TYPE_CHECKING:
    from rich.console import Console

    from onnxslim_core.rewrite import Progress

__all__ = ["Seconds", "Shell", "check_result", "check_targets", "group", "main", "verb", "visible", "write_text"]

PROGRAM = "onnxslim-core"
OK, SAID_NO, USAGE, BROKEN, OUR_BUG, INTERRUPTED = 0, 1, 2, 3, 4, 130
REPORT = "this is our mistake; please report it with the output of the same command and --traceback, and of --version"


@dataclass(frozen=True, slots=True)
class Shell:
    """How one call of a verb talks to the outside.

    Attributes:
        as_json: One JSON document on stdout; people read stderr.
        threads: For onnxruntime, within one operator.
        seed: Of everything that is drawn; None where the user gave none.
        quiet: Nothing but errors, and the JSON.
        stdout: Of the process; while JSON is made, `sys.stdout` is for what a user's code prints.
    """

    as_json: bool
    threads: int
    seed: int | None
    quiet: bool
    stdout: TextIO

    def show(self, draw: Callable[[Console], None]) -> None:
        """Print a result for people: on stdout, or on stderr beside JSON."""
        if self.quiet:
            return
        from onnxslim_core.cli.console import open_console

        stream = sys.stderr if self.as_json else self.stdout
        console = open_console(stream)
        with console.capture() as captured:
            draw(console)
        _write(stream, captured.get())

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        if not self.quiet:
            _write(sys.stderr, f"{visible(text)}\n")

    def tell_stale(self, *paths: str | Path) -> None:
        """Name what an earlier run left beside a result and is not of it; whose that is only the user knows."""
        if left := [Path(path).name for path in paths if Path(path).exists()]:
            self.say(f"{', '.join(left)}: left by an earlier run, not of this result")

    def emit(self, document: object) -> None:
        """Print a JSON document on stdout, if it was asked for."""
        if self.as_json:
            from onnxslim_core.report import json_text, plain

            _write(self.stdout, json_text(plain(document)) + "\n")

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callback (step, done, total) that moves a bar on stderr; silent where that is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            yield _silent
            return
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        from onnxslim_core.cli.console import open_console

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
        with Bar(*columns, console=open_console(sys.stderr), transient=True) as bar:
            task = bar.add_task("", total=None)

            def tell(step: str, done: int, total: int) -> None:
                bar.update(task, description=visible(step), completed=done, total=total or None)

            yield tell


def _silent(step: str, done: int, total: int) -> None:
    return None


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""What moves a terminal's cursor, colours or clears it, but for tabs and ends of lines."""


def visible(text: str) -> str:
    """Text that may hold names out of a model, with what a terminal would obey escaped."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def _write(stream: TextIO, text: str) -> None:
    """Write all of it; a reader that has gone (`| head`) changes neither the verdict nor the exit code."""
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


# ---------------------------------------------------------------------------------------------------- options


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.option("--version", is_flag=True, help="Show the versions and leave.")
@click.pass_context
def group(context: click.Context, version: bool) -> int | None:
    """Make an ONNX model smaller and faster on an x86 CPU, and prove that it still answers the same.

    \b
    Exit codes: 0 done, gate passed; 1 a gate or budget said no; 2 usage, recipe or budget file;
    3 a model or data that is missing, broken, unsupported or cannot run, or no room for the result;
    4 our own bug; 130 interrupted.
    """  # noqa: D301  (click's mark for a paragraph that is not to be wrapped is a real backspace)
    if version:
        click.echo(_versions())
        context.exit(OK)
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        return USAGE
    return None


def _versions() -> str:
    """Our version, and those of the packages that matter for a result, without importing them."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    found = []
    for name in ("onnxruntime", "onnx", "onnx-ir", "numpy"):
        try:
            found.append(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return f"{PROGRAM} {__version__} ({', '.join(found)}, python {sys.version.split()[0]})"


_COMMON = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout; people read stderr."),
    click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of onnxruntime."),
    click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=None, help="Of everything random.  [default: 0]"),
    click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors, and the JSON."),
    click.option("--traceback", is_flag=True, help="Show where an error came from."),
)


class Seconds(click.FloatRange):
    """A range of seconds; what is not a number lies in no range."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, within the range."""
        found = super().convert(value, param, ctx)
        if found != found:
            self.fail(f"'{value}' is not a number", param, ctx)
        return found


def verb(function: Callable[..., int]) -> click.Command:
    """Make a verb of a function `(shell, **options) -> exit code`: adds the common options and the `Shell`."""

    @functools.wraps(function)
    def run(as_json: bool, threads: int, seed: int | None, quiet: bool, traceback: bool, **options: Any) -> int:
        del traceback  # read by `main`, which also sees errors of the command line itself
        _check_said(options)
        _silence_runtime()
        shell = Shell(as_json, threads, seed, quiet, sys.stdout)
        # beside JSON, what metrics, passes and functions of samples print is for people
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            return function(shell, **options)

    decorated: Callable[..., int] = run
    for option in reversed(_COMMON):
        decorated = option(decorated)
    return group.command(name=function.__name__.rstrip("_"))(decorated)


def _check_said(options: Mapping[str, Any]) -> None:
    """Refuse an option that is given and says nothing, as a variable does in a shell that does not know it."""
    context = click.get_current_context()
    for param in context.command.params:
        value = options.get(str(param.name))
        if "" in (value if isinstance(value, tuple) else (value,)):
            raise click.UsageError(f"{param.get_error_hint(context)} is empty", context)


def _silence_runtime() -> None:
    """Let onnxruntime say nothing on the console: what goes wrong comes as an exception, and is told in one line."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)


# ---------------------------------------------------------------------------------------------------- files


def check_targets(
    *targets: str | Path | None,
    sources: Iterable[str | Path | None] = (),
    models: Iterable[str] = (),
    root: str | None = None,
) -> None:
    """Refuse what cannot be written, before any long work.

    Args:
        targets: Files that will be written, a link for what it leads to; None is skipped.
        sources: What is read, none of which may be overwritten: files, `FILE.py:FUNCTION` for the file, and a folder
            for every sample in it.
        models: Models that are read, each with the files that its weights are in.
        root: Where these may lie beside the folder of the model.

    Raises:
        RecipeError: where a folder is missing or not writable, a target is no plain file, or is named twice.
    """
    named = [Path(target) for target in targets if target is not None]
    for target in named:
        _check_target(target)
    paths = list(map(landing, named))
    read = [_file_of(source) for source in sources if source is not None]
    if any(path.exists() for path in paths):  # else no weights can be overwritten, and no model needs a look
        from onnxslim_core.model import files_of

        read += [path for model in models for path in files_of(model, root)]
    taken = {_identity(path): f"'{path}', which is read" for path in read}
    folders = [path for path in read if path.is_dir()]
    for path in paths:
        inside = (f"a sample in '{folder}'" for folder in folders if _is_sample(path, folder))
        if (other := taken.get(_identity(path)) or next(inside, None)) is not None:
            raise RecipeError(f"'{path}' would overwrite {other}", "give another name")
        taken[_identity(path)] = f"'{path}', which is written too"


def check_result(
    output: str, *beside: str | None, sources: Iterable[str | Path | None], model: str, root: str | None
) -> None:
    """`check_targets` for a result, which may replace the model itself: that it does only when it is whole.

    Args:
        output: Where it goes, perhaps with `OUTPUT.data` beside it.
        beside: What else is written.
        sources: As for `check_targets`, but the model.
        model: That it is made from.
        root: As for `check_targets`.
    """
    made = (output, f"{landing(output)}.data")
    check_targets(*made, *beside, sources=sources)
    replaces = _identity(landing(output)) == _identity(Path(model))
    check_targets(*(() if replaces else made), *beside, models=(model,), root=root)


def _check_target(target: Path) -> None:
    """Refuse one that cannot be written."""
    _check_name(target)
    path = landing(target)
    if not path.parent.is_dir():
        raise RecipeError(f"no such folder: '{path.parent}', to write '{path.name}' into", "create it first")
    if path.is_dir():
        raise RecipeError(f"'{path}' is a folder", f"name a file in it, such as {path / 'out'}")
    if target.exists() and not target.is_file():  # what /proc/self/fd links to has no name to look at
        raise RecipeError(f"'{target}' is not a plain file and would be replaced")
    try:
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as err:
        kind = OutputError if err.errno in _NO_ROOM else RecipeError
        raise kind(f"cannot write into '{path.parent}': {err.strerror}") from err


def _file_of(source: str | Path) -> Path:
    """The file of `FILE.py:FUNCTION`; any other path as it is."""
    file, code, _ = str(source).rpartition(".py:")
    return Path(f"{file}.py") if code else Path(source)


def _is_sample(path: Path, folder: Path) -> bool:
    """Whether a file would be read as a sample of a folder."""
    from onnxslim_core.calibration.folders import ARRAYS, IMAGES

    read = path.suffix.lower() in ARRAYS | IMAGES and path.exists()
    return read and path.resolve().is_relative_to(folder.resolve())


def _check_name(path: Path) -> None:
    """Refuse what no file can be called.

    Raises:
        RecipeError: where a name is too long, holds a null character or is no text.
    """
    try:
        str(path).encode()
        path.stat()
    except ValueError as err:  # a null character, or bytes that are no UTF-8, which onnxruntime does not open
        raise RecipeError(f"{str(path)!r} is no name for a file") from err
    except OSError as err:
        if err.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL):
            raise RecipeError(f"'{str(path)[:60]}' cannot be written: {err.strerror}") from err


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except ValueError:
        return str(path)
    except OSError:
        return path.resolve()
    return (found.st_dev, found.st_ino)


def write_text(path: str | Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        OutputError: if it cannot be written.
    """
    write_whole(path, text.encode(errors="backslashreplace"))  # the name of a model may be any bytes


# ---------------------------------------------------------------------------------------------------- the frame


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    import onnxslim_core.cli.sensitivity  # (registers its verb, and with it those of `verbs`)
    import onnxslim_core.cli.verbs  # noqa: F401

    arguments = list(sys.argv[1:] if argv is None else argv)
    # a stream that was closed before we began is None
    sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # a name that the terminal's encoding lacks is shown escaped, not a crash
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # what a library warns of (an overflow in broken weights, say) is not for users
                warnings.simplefilter("ignore")
            code = group.main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (Exception, KeyboardInterrupt, SystemExit) as err:
        return _fail(err, arguments)


def _fail(err: BaseException, arguments: Sequence[str]) -> int:
    """Print what went wrong, in one line and a hint; return the exit code."""
    if _nobody_reads(err):
        return OK
    # where a wrong option comes from is the command line, which its message shows
    if "--traceback" in arguments and not isinstance(err, click.UsageError):
        _write(sys.stderr, visible("".join(traceback.format_exception(err))))
    message, hint, code = _explain(err)
    lines = [f"{PROGRAM}: {message}", *(f"  hint: {line}" for line in (hint or "").splitlines() if line.strip())]
    with suppress(OSError):
        _write(sys.stderr, visible("\n".join(lines)) + "\n")
    if "--json" in arguments:
        import json

        document = {"schema": 1, "error": {"message": message, "hint": hint}, "exit_code": code}
        with suppress(OSError):
            _write(sys.stdout, json.dumps(document, indent=2) + "\n")
    return code


def _nobody_reads(err: BaseException) -> bool:
    """True where the reader of the help has gone, as in `| head`: only then does click itself leave the process."""
    return isinstance(err, SystemExit) and traceback.extract_tb(err.__traceback__)[-1].filename == click.core.__file__


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""A disk, or what the output is led to, takes no more."""


def _interrupted(err: BaseException) -> bool:
    """True where an interrupt is behind it: one that comes while a library loads leaves that library's own error."""
    if _interrupts.came():
        return True
    seen: set[int] = set()
    step: BaseException | None = err
    while step is not None and id(step) not in seen:
        if isinstance(step, KeyboardInterrupt):
            return True
        seen.add(id(step))
        step = step.__cause__ or step.__context__
    return isinstance(err, ImportError | SystemError) and "initialization failed" in str(err)


def _explain(err: BaseException) -> tuple[str, str | None, int]:
    """(message, hint, exit code) of whatever ended a verb."""
    if isinstance(err, KeyboardInterrupt | click.Abort) or _interrupted(err):
        notes = getattr(err.__cause__ or err, "__notes__", ())  # click raises an error of its own from it
        return "interrupted", "\n".join(notes) or None, INTERRUPTED
    if isinstance(err, SlimError):
        return str(err), err.hint, err.exit_code
    if isinstance(err, click.ClickException):
        context = getattr(err, "ctx", None)
        path = context.command_path if context is not None else PROGRAM
        return " ".join(err.format_message().split()), f"{path} --help", USAGE
    if isinstance(err, MemoryError):
        return "not enough memory", None, BROKEN
    if isinstance(err, OSError) and err.errno in _NO_ROOM:
        return f"cannot write: {err.strerror}", None, BROKEN
    if isinstance(err, InternalError):
        return f"internal error: {' '.join(str(err).split())}", REPORT, OUR_BUG
    at = traceback.extract_tb(err.__traceback__)
    where = f" at {Path(at[-1].filename).name}:{at[-1].lineno}" if at else ""
    text = " ".join(str(err).split())[:300]
    return f"internal error: {type(err).__name__}{where}: {text}", REPORT, OUR_BUG
