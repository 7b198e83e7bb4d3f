"""What a clumsy user types, and what a gate must not be fooled by: exit code, one line, nothing left behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxslim_core import _files, _interrupts, compress
from onnxslim_core.cli import main
from onnxslim_core.errors import DataError


def network(weight: float = 1.0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, w) y = Relu(h) }'
    )
    model.graph.initializer.append(numpy_helper.from_array(np.full((4, 3), weight, np.float32), "w"))
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "a.onnx")
    onnx.save(network(float("nan")), "nan.onnx")
    Path("budget.toml").write_text("[budget]\nmin_cosine = 0.9\n")
    Path("size.toml").write_text("[budget]\nmax_size_ratio = 2.0\n")
    return tmp_path


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("onnxslim-core: ")
    assert all(line.startswith("  hint: ") for line in lines[1:])
    return lines[0]


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + "/o.onnx"])
def test_names_that_no_file_can_have(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    before = sorted(folder.iterdir())
    assert main(["compress", "a.onnx", "-o", name, "--no-latency"]) == 2
    one_line(capsys)
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("option", [["bench", "a.onnx", "--seconds"], ["gate", "a.onnx", "a.onnx", "--max-seconds"]])
@pytest.mark.usefixtures("folder")
def test_seconds_are_a_number(capsys: pytest.CaptureFixture[str], option: list[str]) -> None:
    assert main([*option, "nan"]) == 2
    assert "not a number" in one_line(capsys)


@pytest.mark.usefixtures("folder")
def test_text_that_calls_itself_npz(capsys: pytest.CaptureFixture[str]) -> None:
    Path("d.npz").write_text("these are no arrays")
    assert main(["compress", "a.onnx", "-o", "o.onnx", "--data", "d.npz"]) == 3
    assert "no .npz file" in one_line(capsys)


def test_exit_codes_are_listed_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "\\b" not in capsys.readouterr().out


@pytest.mark.parametrize("budget", ["budget.toml", "size.toml"])
@pytest.mark.usefixtures("folder")
def test_answers_that_are_no_numbers_pass_no_gate(capsys: pytest.CaptureFixture[str], budget: str) -> None:
    """Two networks that both answer NaN are equal, and nothing is known of either."""
    assert main(["gate", "nan.onnx", "nan.onnx", "--budget", budget, "--json"]) == 1
    assert "no finite number" in json.dumps(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.usefixtures("folder")
def test_data_that_is_no_number_passes_no_gate(value: float) -> None:
    data = np.ones((6, 4), np.float32)
    np.savez("good.npz", x=data)
    assert main(["gate", "a.onnx", "a.onnx", "--budget", "budget.toml", "--data", "good.npz", "--quiet"]) == 0
    data[2] = value
    np.savez("bad.npz", x=data)
    assert main(["gate", "a.onnx", "a.onnx", "--budget", "budget.toml", "--data", "bad.npz", "--quiet"]) == (
        3 if np.isnan(value) else 1
    )


def test_a_budget_on_answers_that_are_no_numbers_is_not_met(folder: Path) -> None:
    assert main(["compress", "nan.onnx", "-o", "o.onnx", "--no-latency", "--budget", "budget.toml", "--quiet"]) == 1
    assert not Path("o.onnx").exists()


@pytest.mark.usefixtures("folder")
def test_exact_passes_need_no_numbers_to_prove_that_nothing_changed() -> None:
    assert main(["compress", "nan.onnx", "-o", "o.onnx", "--no-latency", "--quiet"]) == 0
    assert Path("o.onnx").exists()


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.usefixtures("folder")
def test_a_stream_closed_from_the_start_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    """Python has None there, as after `1>&-` in a shell."""
    monkeypatch.setattr(sys, stream, None)
    assert main(["compress", "a.onnx", "-o", "o.onnx", "--no-latency"]) == 0
    assert main(["inspect", "missing.onnx"]) == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that takes nothing")
@pytest.mark.parametrize("arguments", [["inspect", "a.onnx", "--json"], ["passes"], ["--help"]])
@pytest.mark.usefixtures("folder")
def test_output_that_takes_no_more_is_not_our_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    full = open("/dev/full", "w")  # noqa: SIM115  (closing it fails, as it should)
    monkeypatch.setattr(sys, "stdout", full)
    assert main(arguments) == 3
    assert "No space left" in one_line(capsys)
    with contextlib.suppress(OSError):
        full.close()


def test_file_names_that_are_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"\xfd.onnx")
    try:
        Path(odd).write_bytes(Path("a.onnx").read_bytes())
    except OSError:
        pytest.skip("the file system takes text only")
    assert main(["compress", "a.onnx", "-o", os.fsdecode(b"\xff.onnx"), "--no-latency"]) == 2
    one_line(capsys)
    assert main(["compress", odd, "-o", "o.onnx", "--no-latency", "--report", "r.json", "--json"]) == 0
    assert json.loads(Path("r.json").read_text()) == json.loads(capsys.readouterr().out)
    budget = ["--budget", "budget.toml"]
    assert main(["gate", odd, "a.onnx", *budget, "--junit", "j.xml", "--markdown", "m.md", "--quiet"]) == 0
    assert {"j.xml", "m.md", "r.json"} <= {path.name for path in folder.iterdir()}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("folder")
def test_an_interrupt_while_a_library_loads_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An extension module answers control-C with an ImportError of its own."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt  # noqa: TRY301
        except KeyboardInterrupt as err:
            raise ImportError("initialization failed") from err

    monkeypatch.setattr("onnxslim_core.model.load", interrupted)
    assert main(["inspect", "a.onnx"]) == 130
    assert "interrupted" in one_line(capsys)


def test_what_a_library_warns_of_is_not_for_the_console(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(*_: object) -> bytes:
        warnings.warn("invalid value", RuntimeWarning, stacklevel=1)
        return b""

    monkeypatch.setattr(_files, "read_bytes", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr))
        assert main(["compress", "m.onnx", "-o", "out.onnx"]) == 3
    assert "invalid value" not in capsys.readouterr().err


@pytest.mark.parametrize("named", ["m.py", "m", "m.py:", ":f", "m.txt:f"])
@pytest.mark.parametrize("verb", [["compress", "a.onnx", "-o", "o.onnx"], ["gate", "a.onnx", "a.onnx"]])
def test_a_metric_is_a_file_and_a_function(
    folder: Path, capsys: pytest.CaptureFixture[str], named: str, verb: list[str]
) -> None:
    Path("m.py").write_text("def f(outputs, labels): raise ValueError('mine')\n")
    Path("m.toml").write_text("[budget]\nmin_metric = 0.5\n")
    call = [*verb, "--budget", "m.toml", "--metric"]
    assert main([*call, named]) == 2
    assert one_line(capsys) == f"onnxslim-core: '{named}' is not of the form FILE.py:FUNCTION"
    assert main([*call, "m.py:f"]) == 3
    assert one_line(capsys) == "onnxslim-core: the metric fails when it is run: ValueError: mine"
    assert not (folder / "o.onnx").exists()


@pytest.mark.usefixtures("folder")
def test_data_that_is_a_file_of_code_lacks_the_function(capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.py").write_text("def give(): return 3\n")
    for named, code in {"f.py": 3, "f.py:": 2}.items():
        assert main(["compress", "a.onnx", "-o", "o.onnx", "--data", named]) == code
        assert "FUNCTION" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
@pytest.mark.parametrize("name", ["p.npz", "p.npy", "p.zip", "p.png", "p"])
@pytest.mark.usefixtures("folder")
def test_a_pipe_is_no_data_file(capsys: pytest.CaptureFixture[str], name: str) -> None:
    os.mkfifo(name)
    assert main(["compress", "a.onnx", "-o", "o.onnx", "--data", name]) == 3
    assert one_line(capsys) == f"onnxslim-core: data '{name}' is no plain file"


@pytest.mark.parametrize("name", ["d.npz", "inside/d.npz", "inside", "."])
@pytest.mark.usefixtures("folder")
def test_what_may_not_be_read_is_not_called_broken_or_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path("inside").mkdir()
    for path in ("d.npz", "inside/d.npz"):
        np.savez(path, x=np.ones((4, 4), np.float32))
    opened, listed = Path.open, os.scandir

    def denied(path: Path, *options: Any, **named: Any) -> Any:
        if path.name == "d.npz":  # (the superuser may read whatever the mode says)
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *options, **named)

    def closed(path: Any = ".") -> Any:
        if name == "." and os.fspath(path).endswith("inside"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(Path, "open", denied)
    monkeypatch.setattr(os, "scandir", closed)
    assert main(["compress", "a.onnx", "-o", "o.onnx", "--data", name]) == 3
    assert "Permission denied" in one_line(capsys)


# ---------------------------------------------------------------------------------------------------- outputs over inputs


@pytest.fixture
def crowded(folder: Path) -> Path:
    """A model with its weights in a file of their own, and everything else that a command may read."""
    onnx.save(network(), "sub.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    np.savez("d.npz", x=np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    for name in ("images", "rest"):
        Path(name).mkdir()
        Path(name, "d.npz").write_bytes(Path("d.npz").read_bytes())
    Path("F.py").write_text("import numpy as np\ndef ok(*_): return dict(np.load('d.npz'))\n")
    Path("M.py").write_text("def ok(outputs, labels): return 0.5\n")
    Path("mine.py").write_text("def ok(graph): return graph\n")
    Path("link.bin").symlink_to("w.bin")
    Path("r.toml").write_text(
        '[data]\nsource = "d.npz"\njudging = "rest"\n[[pass]]\nname = "mine.py:ok"\n[[pass]]\nname = "normalize"\n'
    )
    return folder


COMPRESS = ["compress", "sub.onnx", "--no-latency", "-o"]
GATE = ["gate", "a.onnx", "sub.onnx", "--budget", "budget.toml"]
OVERWRITING = [
    [*COMPRESS, "w.bin"],
    [*COMPRESS, "link.bin"],
    [*COMPRESS, "o.onnx", "--report", "w.bin"],
    [*COMPRESS, "o.onnx", "--lock", "w.bin"],
    [*COMPRESS, "o.onnx", "--report", "o.onnx.data"],
    [*COMPRESS, "o.onnx", "--lock", "o.onnx.data"],
    [*COMPRESS, "sub.onnx", "--report", "w.bin"],
    [*COMPRESS, "o.onnx", "--metric", "M.py:ok", "--report", "M.py"],
    [*COMPRESS, "o.onnx", "--data", "F.py:ok", "--report", "F.py"],
    [*COMPRESS, "images/d.npz", "--data", "images"],
    [*COMPRESS, "d.npz", "--recipe", "r.toml"],
    [*COMPRESS, "rest/d.npz", "--recipe", "r.toml"],
    [*COMPRESS, "o.onnx", "--recipe", "r.toml", "--lock", "mine.py"],
    [*COMPRESS, "o.onnx", "--recipe", "r.toml", "--report", "r.toml"],
    ["compress", "sub.onnx", "-o", "w.onnx", "--preset", "balanced", "--pareto", "--report", "w.bin"],
    ["apply", "l.lock", "sub.onnx", "-o", "w.bin"],
    ["apply", "l.lock", "sub.onnx", "-o", "l.lock"],
    [*GATE, "--junit", "w.bin"],
    [*GATE, "--markdown", "M.py", "--metric", "M.py:ok"],
    [*GATE, "--recipe", "r.toml", "--junit", "d.npz"],
    ["sensitivity", "sub.onnx", "--data", "images", "--plot", "w.bin"],
    ["sensitivity", "sub.onnx", "--data", "images", "--plot", "images/d.npz"],
]


@pytest.mark.parametrize("arguments", OVERWRITING, ids=" ".join)
def test_no_output_overwrites_what_is_read(
    crowded: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    Path("l.lock").write_text("a lock")
    before = {path: path.read_bytes() for path in sorted(crowded.rglob("*")) if path.is_file()}
    assert main(arguments) == 2
    assert "would overwrite" in one_line(capsys)
    assert {path: path.read_bytes() for path in sorted(crowded.rglob("*")) if path.is_file()} == before


def test_a_result_may_replace_its_model_and_an_earlier_result(crowded: Path) -> None:
    """With samples in the very folder, and what an earlier run left there."""
    for _ in range(2):
        assert main([*COMPRESS, "o.onnx", "--data", ".", "--quiet", "--report", "r.json"]) == 0
        assert main([*COMPRESS, "images/o.onnx", "--data", "images", "--quiet"]) == 0
    for _ in range(2):
        assert main([*COMPRESS, "sub.onnx", "--data", "images", "--quiet"]) == 0
    assert not list(crowded.glob("*.data")), "no weight is large enough, and an empty file would be in the way"


# ---------------------------------------------------------------------------------------------------- options that say nothing


@pytest.mark.parametrize(
    ("option", "arguments"),
    [
        ("--budget", ["compress", "a.onnx", "-o", "o.onnx", "--budget", ""]),
        ("--output", ["compress", "a.onnx", "-o", ""]),
        ("--set", ["compress", "a.onnx", "-o", "o.onnx", "--set", "normalize.x=1", "--set", ""]),
        ("--recipe", [*GATE, "--recipe", ""]),
        ("--data", ["compare", "a.onnx", "a.onnx", "--data", ""]),
        ("MODEL", ["inspect", ""]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_an_option_that_says_nothing_is_a_slip(
    capsys: pytest.CaptureFixture[str], option: str, arguments: list[str]
) -> None:
    """As when a shell puts in a variable that it does not know."""
    assert main(arguments) == 2
    said = one_line(capsys)
    assert option in said
    assert said.endswith("is empty")
    assert not Path("o.onnx").exists()


@pytest.mark.usefixtures("folder")
def test_data_that_is_nothing_is_not_random_data(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="empty text"):
        compress("a.onnx", data="")
    Path("F.py").write_text("def none(): return None\n")
    assert main(["compare", "a.onnx", "a.onnx", "--data", "F.py:none"]) == 3
    assert "returns None" in one_line(capsys)
    assert main([*GATE[:1], "a.onnx", *GATE[1:2], *GATE[3:], "--labels", "y"]) == 2
    assert "no data is given" in one_line(capsys)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
@pytest.mark.parametrize("option", ["--recipe", "--budget"])
@pytest.mark.parametrize("kind", ["/dev/zero", "pipe", "large", "."])
@pytest.mark.usefixtures("folder")
def test_recipes_and_budgets_are_small_plain_files(capsys: pytest.CaptureFixture[str], option: str, kind: str) -> None:
    os.mkfifo("pipe")
    Path("large").write_text("#" * 2**21)
    assert main(["compress", "a.onnx", "-o", "o.onnx", option, kind]) == 2
    assert f"cannot read '{kind}'" in one_line(capsys)


# ---------------------------------------------------------------------------------------------------- streams and signals


@pytest.mark.usefixtures("folder")
def test_json_is_alone_on_stdout_whatever_a_users_code_prints(capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("d.npz", x=np.ones((4, 4), np.float32), y=np.ones(4))
    Path("F.py").write_text(
        "import numpy as np\n"
        "def data():\n    print('NOISE'); return dict(np.load('d.npz'))\n"
        "def metric(outputs, labels):\n    print('NOISE'); return 0.5\n"
        "def step(graph):\n    print('NOISE'); return graph\n"
    )
    Path("r.toml").write_text('[[pass]]\nname = "F.py:step"\n')
    run = ["compress", "a.onnx", "-o", "o.onnx", "--no-latency", "--json", "--recipe", "r.toml", "--allow-code"]
    assert main([*run, "--data", "F.py:data", "--metric", "F.py:metric", "--set", "data.labels=y"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["schema"] == 1
    assert said.err.count("NOISE") >= 3


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["--version"], ["passes"]])
def test_a_reader_that_left_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Of `onnxslim-core --help | true`; click then leaves by itself, of which versions say more or less."""
    into = os.pipe()
    os.close(into[0])
    with contextlib.suppress(OSError), os.fdopen(into[1], "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_wrong_usage_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "--traceback"]) == 2
    assert "No such option" in one_line(capsys)


@pytest.mark.usefixtures("folder")
def test_an_interrupt_that_a_library_forgot_is_an_interrupt(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Numpy's error says neither that there was one nor what it was raised from."""

    def interrupted(*_: object, **__: object) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise ImportError("importing the numpy C-extensions failed")

    monkeypatch.setattr("onnxslim_core.model.load", interrupted)
    monkeypatch.setattr(_interrupts, "_seen", [])
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupts.watch()
        assert main(["inspect", "a.onnx"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert one_line(capsys) == "onnxslim-core: interrupted"


@pytest.mark.parametrize("coloured", [False, True])
@pytest.mark.usefixtures("folder")
def test_names_do_not_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], coloured: bool
) -> None:
    """Neither what is printed nor an error; the colours of our own tables stay."""
    monkeypatch.setenv("FORCE_COLOR" if coloured else "NO_COLOR", "1")
    evil = "\x1b[31mx\x07\x9b2J"
    model = network()
    for place in (model.graph.input[0], model.graph.node[0]):
        place.name = evil
    model.graph.node[0].input[0] = evil
    onnx.save(model, "evil.onnx")
    for arguments in (["inspect", "evil.onnx", "--explain"], ["compare", "evil.onnx", "a.onnx"]):
        main(arguments)
        said = capsys.readouterr()
        assert "\\x1b[31mx" in said.out + said.err
        assert "\x1b[31mx" not in said.out + said.err
        assert not {"\x07", "\x9b"} & set(said.out + said.err)
        assert ("\x1b[1m" in said.out) == (coloured and bool(said.out))


@pytest.mark.usefixtures("folder")
def test_a_lock_that_is_not_of_the_result_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    run = ["compress", "a.onnx", "-o", "o.onnx", "--no-latency"]
    for options, told in (([], False), (["--no-lock"], True), (["--lock", "l.lock"], True), ([], False)):
        assert main([*run, *options]) == 0
        assert ("o.onnx.lock: left by an earlier run" in capsys.readouterr().err) == told
    assert main(["apply", "l.lock", "a.onnx", "-o", "o.onnx"]) == 0
    assert "left by an earlier run" in capsys.readouterr().err
    assert main(["apply", "./o.onnx.lock", "a.onnx", "-o", "o.onnx"]) == 0
    assert "left by an earlier run" not in capsys.readouterr().err
