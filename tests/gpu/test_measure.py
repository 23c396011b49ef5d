"""What `run.sh` makes of commands that end well, fail, hang or print nonsense; and that its own commands are right."""

import argparse
import importlib
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from gpu.measure import PAGE, RAW, ROOT, SAID, Record, Runner, measure, with_section
from gpu.parts import Command, Output, Part, Table, all_parts, of_tests

MACHINE = {"gpu": "A GPU", "cpu": "A CPU", "cores": 2, "versions": {"torch": "2.11"}, "commit": "abc", "date": "now"}
ENOUGH_SEC = 600.0
START = "# Title\n\n<!-- nothing -->\nNothing has been measured.\n<!-- end of nothing -->\n"


def rows_of(output: Output) -> list[Table]:
    return [Table("", [{"speed": str(each["speed"])} for each in output.objects])]


def part(name: str, *programs: str, allowed_sec: float = ENOUGH_SEC) -> Part:
    commands = tuple(Command(("python", "-c", program), allowed_sec) for program in programs)
    return Part(name=name, title=f"Part {name}", commands=commands, tables=rows_of)


def record(place: Path) -> Record:
    return Record(place, (place / PAGE,), MACHINE, START)


def says(speed: int) -> str:
    return f"print('first a word'); print('{{\"speed\": {speed}}}')"


def test_what_fails_or_hangs_leaves_the_rest(tmp_path: Path) -> None:
    parts = [
        part("good", says(1)),
        part("failed", says(2), f"{says(3)}; raise SystemExit('broken')", says(4)),
        part("hung", "import time; time.sleep(3600)", allowed_sec=0.2),
        part("other", "print('{\"no\": 0}')"),
        part("last", says(5)),
    ]
    assert not measure(parts, record(tmp_path), Runner(ENOUGH_SEC))
    page, raw = (tmp_path / PAGE).read_text(), json.loads((tmp_path / RAW).read_text())
    assert "Nothing has been measured" not in page
    assert [line for line in page.splitlines() if line.startswith("| ") and "speed" not in line] == [
        f"| {speed} |" for speed in range(1, 6)
    ]
    assert "Not all of it was measured: ended with 1: broken" in page
    assert "Not all of it was measured: stopped after 0 s" in page
    assert "what was printed is not understood: KeyError('speed')" in page
    assert "A GPU; A CPU, 2 cores; torch 2.11; commit abc; now" in page
    assert raw["failed"]["printed"] == [{"speed": 2}, {"speed": 3}, {"speed": 4}]
    assert raw["last"]["machine"] == MACHINE
    assert raw["last"]["problems"] == []
    assert "broken" in (tmp_path / SAID).read_text()


def test_all_is_well_only_when_every_part_has_rows(tmp_path: Path) -> None:
    assert measure([part("good", says(1))], record(tmp_path), Runner(ENOUGH_SEC))
    assert not measure([part("good", says(1)), part("empty", "pass")], record(tmp_path), Runner(ENOUGH_SEC))
    assert not measure([part("good", says(1))], record(tmp_path), Runner(0.0))


def test_a_part_measured_again_replaces_its_rows_and_no_others(tmp_path: Path) -> None:
    notes = record(tmp_path)
    measure([part("a", says(1)), part("b", says(2))], notes, Runner(ENOUGH_SEC))
    measure([part("a", says(3)), part("b", "raise SystemExit(1)")], notes, Runner(ENOUGH_SEC))
    page = (tmp_path / PAGE).read_text()
    assert "| 3 |" in page
    assert "| 1 |" not in page
    assert "| 2 |" in page  # rows are better than none
    assert page.count("## Part a") == page.count("## Part b") == 1
    assert json.loads((tmp_path / RAW).read_text())["b"]["problems"] == ["ended with 1"]


def test_what_is_not_timed_is_run_at_once(tmp_path: Path) -> None:
    """Each of two parts waits for the other."""
    meet = (
        "import pathlib, time; here = pathlib.Path({here!r}); (here / '{mine}').touch()\n"
        "while not (here / '{other}').exists(): time.sleep(0.01)\n"
    )
    parts = [
        Part(
            name=mine,
            title=mine,
            commands=part(mine, meet.format(here=str(tmp_path), mine=mine, other=other) + says(1)).commands,
            tables=lambda output: [Table("", [{"said": output.text}])],
            is_timed=False,
        )
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    assert measure(parts, record(tmp_path / "out"), Runner(ENOUGH_SEC))


def test_nothing_that_a_command_began_is_left() -> None:
    program = "import subprocess; print(subprocess.Popen(['sleep', '3600'], stdout=2).pid)"
    ended = Runner(ENOUGH_SEC).run(Command(("python", "-c", program), ENOUGH_SEC))
    state = Path(f"/proc/{int(ended.printed)}/stat")
    while state.exists() and state.read_text().rpartition(")")[2].split()[0] not in ("Z", "X"):
        time.sleep(0.01)


def test_a_stop_ends_what_runs_and_begins_nothing_more(tmp_path: Path) -> None:
    runner, ready = Runner(ENOUGH_SEC), tmp_path / "ready"
    os.mkfifo(ready)
    program = f"open({str(ready)!r}, 'w').close(); import time; time.sleep(3600)"

    def stop() -> None:
        ready.read_text()  # waits for the command
        runner.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    ended = runner.run(Command(("python", "-c", program), ENOUGH_SEC))
    thread.join()
    assert ended.problem.startswith("ended with -9")
    assert runner.run(Command(("python", "-c", says(1)), ENOUGH_SEC)).problem == "no time was left"


def test_a_section_goes_where_its_marks_are() -> None:
    page = with_section(START, "a", "one\n")
    page = with_section(with_section(page, "b", r"\1 two" + "\n"), "a", "three\n")
    assert page == "# Title\n\n<!-- a -->\nthree\n<!-- end of a -->\n\n<!-- b -->\n\\1 two\n<!-- end of b -->\n"


def test_counts_of_tests() -> None:
    said = "..F\n"
    said += "FAILED tests/gpu/test_a.py::test_b - assert 0\nERROR tests/gpu/test_c.py\n"
    said += "1 failed, 12 passed, 2 errors in 3s"
    ((_, (row,)),) = of_tests(Output(said, []))
    assert row == {
        "passed": "12",
        "failed": "1",
        "skipped": "0",
        "error": "2",
        "which": "test_a.py::test_b, test_c.py",
    }
    assert of_tests(Output("no tests ran", [])) == []


@pytest.mark.parametrize("on_gpu", [True, False])
def test_every_command_of_a_part_takes_its_options(on_gpu: bool) -> None:
    for each in all_parts(on_gpu=on_gpu):
        for command in each.commands:
            program, *words = command.words
            if program == "python":
                assert words[0] == "-m" or (ROOT / words[0]).is_file()
                continue
            assert words[0] == "bench"
            module, parser = importlib.import_module(f"slmkit.bench.{words[1]}"), argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_args(words[2:])


def test_a_run_on_no_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from gpu import measure as module

    monkeypatch.setattr(module, "gpu", lambda: "")
    for words, said in (([], "no GPU is found"), (["nonsense"], "unknown parts: nonsense; there are tests steps")):
        with pytest.raises(SystemExit):
            module.main(words)
        assert said in capsys.readouterr().err


@pytest.mark.full
def test_a_rehearsal_has_rows_of_its_parts_and_leaves_the_page_alone() -> None:
    before = (ROOT / "tests" / "gpu" / PAGE).read_bytes()
    command = ["bash", "tests/gpu/run.sh", "--rehearse", "codec", "checkpoint"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| encode, s of audio/s |") == 1
    assert done.stdout.count("100.000% |\n") == 2  # equal codes, with one utterance and two
    assert "| stall in the background, s |" in done.stdout
    assert "Not all of it was measured" not in done.stdout
    assert (ROOT / "tests" / "gpu" / PAGE).read_bytes() == before
