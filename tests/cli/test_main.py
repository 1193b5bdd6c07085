"""The entry point: usage, exit codes, and help without torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from inverselm import __version__
from inverselm.cli import main as entry
from inverselm.cli.main import COMMANDS, main
from inverselm.errors import UserError


def python(*arguments, **kwargs):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, **kwargs)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_usage_names_every_command(argv, capsys):
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "usage: inverselm <command>" in out
    for command in COMMANDS:
        assert f"\n  {command} " in out


def test_version_and_unknown_command(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == __version__ + "\n"
    assert main(["sff"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "'sff'" in captured.err
    assert "generate" in captured.err


def test_module_is_the_command():
    done = python("-m", "inverselm", "--version")
    assert (done.returncode, done.stdout) == (0, __version__ + "\n")
    assert python("-m", "inverselm", "nothing").returncode == 2


@pytest.mark.parametrize("argv", [["--help"], ["score", "--help"], ["generate", "--help"]])
def test_help_does_not_import_torch(argv):
    code = (
        "import sys\nfrom inverselm.cli.main import main\n"
        f"try: main({argv})\nexcept SystemExit as stop: assert stop.code == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    assert "usage: inverselm" in done.stdout


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("no such thing"), 2, "inverselm score: error: no such thing"),
        (KeyboardInterrupt("Go on with --resume."), 130, "inverselm score: stopped. Go on with --resume."),
        (KeyboardInterrupt(), 130, "inverselm score: stopped."),
    ],
)
def test_exit_codes(error, code, line, monkeypatch, capsys):
    from inverselm.cli.scoring import score

    def run(command, argv):
        raise error

    monkeypatch.setattr(score, "run", run)
    assert main(["score"]) == code
    assert capsys.readouterr().err.strip() == line


def test_a_bug_is_not_hidden(monkeypatch):
    from inverselm.cli.scoring import score

    monkeypatch.setattr(score, "run", lambda command, argv: {}["bug"])
    with pytest.raises(KeyError):
        main(["score"])


def test_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "inverselm", "score", "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=300
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == b""


def test_every_command_has_its_module():
    folder = Path(entry.__file__).parent
    for module, _ in COMMANDS.values():
        assert (folder / f"{module.replace('.', '/')}.py").is_file()
