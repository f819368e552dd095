"""Commands that fail: a document with `--json`, a log, and hints that mend it."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pytest
from children import WAIT
from test_bad_input import MODELS, mlp_state
from typer.testing import CliRunner, Result

from gpu_align import GpuAlignError, save_checkpoint
from gpu_align._cli import _options, _outputs, _pair, _terminal
from gpu_align._cli._main import app
from gpu_align._search import SEARCHES

PAIR = ("align", "1.safetensors", "0.safetensors", "--search", "descent")
TOKENS = """
from torch import nn

def tokens():
    return nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
"""


@pytest.fixture
def folder(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "200")
    (inside / "nets.py").write_text(MODELS + TOKENS, encoding="utf-8")
    for number in (0, 1):
        save_checkpoint(inside / f"{number}.safetensors", mlp_state(number))
    return inside


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


# One document


REFUSED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "no file": (("align", "no.pt", "0.safetensors"), "CheckpointError", "no.pt"),
    "search": (("align", "1.safetensors", "0.safetensors", "--search", "x"), "InputError", "x"),
    "model": (("inspect", "--model", "nets.py:no", "--input-shape", "2,6"), "ModelError", "no"),
    "spec": (("inspect", "--spec", "no.json"), "SpecError", "no.json"),
    "option": ((*PAIR, "--nope"), "NoSuchOption", "--nope"),
    "value": ((*PAIR, "--steps", "x"), "BadParameter", "--steps"),
    "argument": (("apply",), "MissingParameter", ""),
    "command": (("nope",), "UsageError", "nope"),
}


@pytest.mark.parametrize(("arguments", "kind", "text"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_is_a_document_too(
    arguments: tuple[str, ...], kind: str, text: str, folder: Path
) -> None:
    result = invoke(*arguments, "--json")
    assert result.exit_code == 2
    document = json.loads(result.stdout)
    assert document["exit"] == 2
    assert text in document["error"]
    assert document["kind"] == kind
    assert result.stderr
    assert invoke(*arguments).stdout == ""


def test_a_failure_is_a_document_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise GpuAlignError("[red]it failed[/red]")

    def run_out(*args: object) -> None:
        raise MemoryError

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    for raising, kind, text in (
        (fail, "GpuAlignError", "[red]it failed[/red]"),
        (run_out, "MemoryError", "not enough memory"),
        (interrupt, "KeyboardInterrupt", "interrupted"),
    ):
        monkeypatch.setattr(_pair, "check_preserved", raising)
        result = invoke(*PAIR, "--json")
        document = json.loads(result.stdout)
        assert (result.exit_code, document["exit"], document["kind"]) == (1, 1, kind)
        assert text in document["error"]


def test_a_result_that_could_not_be_written_is_one_document(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_outputs, "save_checkpoint", full)
    result = invoke(*PAIR, "-o", "new.safetensors", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit"] == 1
    assert "No space left" in document["error"]
    assert document["distance"] <= document["distance_before"]
    assert document["written"] == {}


# The log


def test_the_log_has_what_is_done_and_said(folder: Path) -> None:
    assert invoke(*PAIR, "--log", "run.log", "-q").exit_code == 0
    first = Path("run.log").read_text(encoding="utf-8")
    for text in ("reading checkpoints", "step 1, distance", "warning: the function was not"):
        assert text in first
    assert invoke("align", "1.safetensors", "no.pt", "--log", "run.log").exit_code == 2
    whole = Path("run.log").read_text(encoding="utf-8")
    assert whole.startswith(first)
    assert "error: " in whole
    _terminal.say("not within a command")
    assert Path("run.log").read_text(encoding="utf-8") == whole


@pytest.mark.parametrize("name", ["0.safetensors", "run", "folder.log", "no/run.log", "in.log"])
def test_a_log_overwrites_nothing_else(name: str, folder: Path) -> None:
    (folder / "folder.log").mkdir()
    (folder / "in.log").write_bytes((folder / "1.safetensors").read_bytes())
    before = (folder / "in.log").read_bytes()
    result = invoke("align", "in.log", "0.safetensors", "--log", name)
    assert result.exit_code == 2
    assert "cannot write the log" in result.stderr
    assert (folder / "in.log").read_bytes() == before


# Hints


def test_floats_for_tokens_get_a_hint(folder: Path) -> None:
    result = invoke("inspect", "--model", "nets.py:tokens", "--input-shape", "2,5")
    assert result.exit_code == 2
    assert "--input-shape 2,5:int64:VOCAB" in result.stderr
    good = invoke("inspect", "--model", "nets.py:tokens", "--input-shape", "2,5:int64:9")
    assert good.exit_code == 0
    assert "VOCAB" not in good.output


@pytest.mark.parametrize(("shape", "warned"), [("1,6", True), ("2,6", False), ("1", False)])
def test_a_batch_of_one_is_warned_of(shape: str, warned: bool, folder: Path) -> None:
    result = invoke("inspect", "--model", "nets.py:mlp", "--input-shape", shape)
    assert ("a batch of 1" in result.stderr) == warned


def test_the_help_shows_the_defaults_there_are() -> None:
    def default(name: str) -> int:
        search = SEARCHES[name].make()
        return next(
            getattr(search, field)
            for field in ("population", "width", "starts")
            if hasattr(search, field)
        )

    for setting, text in (("width", _options.WIDTHS), ("starts", _options.STARTS)):
        names = [name for name, entry in SEARCHES.items() if entry.setting == setting]
        assert text == ", ".join(f"{name} {default(name)}" for name in names)
        assert text in " ".join(invoke("align", "--help").output.replace("│", " ").split())


# The standard streams


COMMAND = f"{sys.executable} -m gpu_align"


def run(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        env={**os.environ, **environment},
        timeout=WAIT,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (f"{COMMAND} --version >&-", 0),
        (f"{COMMAND} --version 2>&-", 0),
        pytest.param(f"{COMMAND} env --json >/dev/full", 1, marks=pytest.mark.slow),
    ],
)
def test_streams_that_are_closed_or_full(command: str, code: int) -> None:
    result = run(command)
    assert result.returncode == code
    assert b"Traceback" not in result.stderr
    assert b"Exception ignored" not in result.stderr
    if code:
        assert result.stderr == b"error: cannot print: No space left on device\n"


@pytest.mark.parametrize(
    "arguments", [("env",), ("--version",), ("zoo", "align", "--help")], ids=str
)
def test_a_full_output_is_told_of(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(*arguments, into=redirect_stdout) == 1
    assert capsys.readouterr().err == "error: cannot print: No space left on device\n"


def test_a_refusal_that_cannot_be_told_is_still_one(folder: Path) -> None:
    assert code_of("report", "no.json", "-o", "no.html", into=redirect_stderr) == 2


def code_of(*arguments: str, into: type[redirect_stdout] | type[redirect_stderr]) -> object:
    """Return the exit code of a command one of whose streams is on a full device."""
    full = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115
    with into(full), pytest.raises(SystemExit) as ended:
        app(arguments)
    with suppress(OSError):
        full.close()
    return ended.value.code


def test_a_narrow_terminal_is_printed_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1")
    assert invoke("env").exit_code == 0


@pytest.mark.slow
def test_names_that_cannot_be_shown(folder: Path) -> None:
    odd = os.fsdecode(b"\xff.safetensors")
    for name, number in ((odd, 1), ("\u00e9.safetensors", 0)):
        (folder / name).write_bytes((folder / f"{number}.safetensors").read_bytes())
    align = f"{COMMAND} align $'\\xff.safetensors' \u00e9.safetensors --search descent"
    outputs = "--permutation $'\\xff2.safetensors' --report $'\\xff.html' --json-file $'\\xff.json'"
    done = run(f"{align} -o $'\\xff1.safetensors' {outputs}", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert len([path for path in folder.iterdir() if os.fsencode(path.name)[0] == 0xFF]) == 5
