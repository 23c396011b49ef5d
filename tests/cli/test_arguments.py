"""The common command line: suggestions, help that fits, quiet ends, and answers without waiting for imports."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import pytest

from slmkit.assets import Asset
from slmkit.cli.arguments import fill
from slmkit.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent.parent
HEAVY = ("torch", "numpy", "pydantic", "yaml", "transformers", "deepspeed")
ACTIONS = {"codec": ["fit", "copy"], "recipe": ["list", "copy"]}
ACTIONS["tokenize"] = ["plan", "run", "submit", "status", "finalize", "verify"]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """(exit code, all that was printed) of a command line that argparse ends."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    captured = capsys.readouterr()
    return int(stopped.value.code or 0), captured.out + captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no 'trian'; did you mean train?"),
        (["zebra"], "there is no 'zebra'; expected one of init-base, codec, tokenize"),
        (["tokenize", "vreify"], "there is no 'vreify'; did you mean verify?"),
        (["recipe", "cop"], "there is no 'cop'; did you mean copy?"),
        *((["codec", "fit", "a", "b", "--max-hours", n], "--max-hours: invalid") for n in ("inf", "nan", "0", "-1")),
        (["codec", "fit", "a", "b", "--seed", str(2**64)], "--seed: invalid"),
        (["init-base", "a", "--text", "b", "--num-heads", "0"], "--num-heads: invalid"),
        (["init-base", "a", "--text", "b", "--seed", str(2**64)], "--seed: invalid"),
        (["inspect", "run", "--nope"], "unknown arguments: --nope"),
        (["inspect", "run", "a=b"], "unknown arguments: a=b"),
        (["tokenize", "verify", "out", "--samples", "-3"], "argument --samples: invalid natural value: '-3'"),
        (["tokenize", "verify", "out", "--seed", "-1"], "argument --seed: invalid natural value: '-1'"),
        (["tokenize", "finalize", "out", "--max-failure-share", "5"], "--max-failure-share: invalid share value: '5'"),
        (["train", "--config", os.devnull, "word"], "got 'word', expected KEY=VALUE such as model.group=12"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_what_is_mistyped_is_answered(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = shown(capsys, *words)
    assert code == 2
    assert message in text
    assert text.startswith("usage: ")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every command and its actions; and it uses a wider terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    for action in ["", *ACTIONS.get(command, [])]:
        code, text = shown(capsys, *filter(None, (command, action)), "--help")
        assert code == 0
        assert [line for line in text.splitlines() if len(line) > 80] == []
    if command == "train":
        monkeypatch.setenv("COLUMNS", "160")
        _, wide = shown(capsys, command, "--help")
        assert max(map(len, wide.splitlines())) > 120
        assert len(wide.splitlines()) < len(text.splitlines())


def test_help_shows_choices_ranges_and_defaults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, text = shown(capsys, "train", "--help")
    for words in (
        "[one of 'tts', 'asr', 'text', 'qa'; default: tts]",
        "[a number of seconds, at least 0; default: 600.0]",
        "[a path; required]",
        "\noptimizer: AdamW",
    ):
        assert words in text


def test_text_is_wrapped_and_tables_keep_their_columns() -> None:
    text = "Some words that are\nwrapped anew.\n\n  a b  one two three four\n  cc   five\n       six\n\nlast"
    assert fill(text, 20) == [
        *("Some words that are", "wrapped anew.", ""),
        *("  a b  one two three", "       four", "  cc   five six", "", "last"),
    ]


def run_python(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, cwd=ROOT)


IMPORTED = f"""
import json, resource, sys
from slmkit.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in {HEAVY!r} if name in sys.modules]
print("\\n" + json.dumps([code, heavy, used.ru_utime + used.ru_stime]))
"""


@pytest.mark.parametrize(
    ("words", "expected", "heavy"),
    [
        (["--help"], 0, []),
        (["trian"], 2, []),
        (["train", "--nope"], 2, []),
        (["launch", "--processes", "x"], 2, []),
        (["tokenize", "run", "--task", "x"], 2, []),
        (["train", "--config", "gone.yaml"], 2, []),
        (["codec", "ftt"], 2, []),
        (["recipe", "list"], 0, []),
        (["train", "--config", "libritts_ntp", "steps=1"], 2, ["pydantic", "yaml"]),
        (["train", "--config", "libritts_ntp", "deepspeed=gone.json"], 2, ["pydantic", "yaml"]),
        (["train", "--config", "libritts_ntp", "--print-config"], 0, ["pydantic", "yaml"]),
    ],
)
def test_a_command_imports_only_what_its_answer_needs(words: list[str], expected: int, heavy: list[str]) -> None:
    """Help and wrong arguments in 0.15 CPU seconds; torch only for a config that is right."""
    done = run_python(IMPORTED, *words)
    code, imported, cpu_sec = json.loads(done.stdout.splitlines()[-1])
    assert (code, imported) == (expected, heavy), done.stderr
    # Twice what is allowed on an idle machine.
    assert heavy or cpu_sec < 0.3


EVERY_HELP = [[], *([c, *filter(None, [a])] for c in COMMANDS for a in ["", *ACTIONS.get(c, [])])]
OUTPUTS = [["recipe", "list"], ["train", "--config", "libritts_ntp", "--print-config"]]


@pytest.mark.parametrize(
    "words", [*([*words, "--help"] for words in EVERY_HELP), *OUTPUTS], ids=lambda words: " ".join(words)
)
def test_a_reader_that_goes_away_ends_it_quietly(words: list[str]) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = forked.Process(["-m", "slmkit", *words], stdout=write_end, stderr=forked.PIPE, cwd=ROOT)
    os.close(write_end)
    assert process.communicate()[1] == ""
    assert process.returncode in ((0, 141) if words[-1] == "--help" else (141,))  # argparse forgives


def test_real_readers_that_go_away() -> None:
    """Of a process with an interpreter of its own: what Python itself says at its end counts, too."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    small = "train --config libritts_ntp --print-config | :"  # all of it waits to be written until the end
    for words in (small, "recipe list | :", "inspect gone 2>&1 | :", "recipe list >&-", "recipe cop 2>&-"):
        line = f"{sys.executable} -m slmkit {words}"
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT, env=env)
        assert done.stderr == "", words


@pytest.mark.parametrize(("words", "code"), [("recipe list", 2), ("train --help", 2), ("inspect gone 2>/dev/full", 2)])
def test_a_full_disk_behind_the_output_is_named(words: str, code: int) -> None:
    line = f"{sys.executable} -m slmkit {words} >/dev/full"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == code
    named = "cannot write to standard output: No space left on device"
    assert (named in done.stderr) == ("2>" not in words)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [*([*words, "--help"] for words in EVERY_HELP), *OUTPUTS], ids=lambda words: " ".join(words)
)
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_utf8_gets_all_words(
    encoding: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(SystemExit, match="0"):
        sys.exit(main(words))
    assert len(terminal.buffer.getvalue()) > 80


def test_what_strangers_wrote_is_shown_and_not_obeyed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("# 🎉 \u202e\x9b\n")
    monkeypatch.setattr("slmkit.cli.recipe.assets", lambda: [Asset("a\x1b[2J", "config", tmp_path / "a.yaml")])
    assert main(["recipe", "list"]) == 0
    assert capsys.readouterr().out.split() == [r"a\x1b[2J", "config", "🎉", r"\u202e\x9b"]
    assert main(["inspect", "a\x1b[2J\u2066"]) == 2
    assert r"a\x1b[2J\u2066 is not" in capsys.readouterr().err
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["recipe", "list"]) == 0
    assert rb"\U0001f389" in terminal.buffer.getvalue()


def test_other_broken_pipes_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BrokenPipeError("of something else")

    monkeypatch.setattr("slmkit.cli.recipe.assets", broken)
    with pytest.raises(BrokenPipeError, match="of something else"):
        main(["recipe", "list"])
