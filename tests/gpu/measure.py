"""Every measurement that a GPU is wanted for, the most valuable first, each bounded in time and written down at once.

`run.sh` starts it. A part (`parts.py`) is a few commands, and how what they print becomes rows of tables. A command
that fails, or takes longer than it may, leaves all others. Written are, after every command:

    RESULTS.md      the tables, a section for each part; a part that is measured again has its section replaced
    results.json    what the commands of each part printed, with hardware, versions and commit
    output.txt      all that they said, with the errors

in $OUT where that is set, else in tests/gpu/results/. The page begins as tests/gpu/RESULTS.md is; on a GPU that is
written, too.

With --rehearse the same parts run on the CPU in tiny shapes, in a temporary directory: it shows that they run, its
figures say nothing.

Invariant: a section that has rows is never replaced by one that has none. The exit status is 0 only when every command
of every part ended well and gave rows.

Example:
    bash tests/gpu/run.sh --rehearse codec curve
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from gpu.parts import Command, Output, Part, Table, all_parts

from slmkit.files import atomic_write, code_sha256, git_commit, versions

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PAGE, RAW, SAID = "RESULTS.md", "results.json", "output.txt"
MINUTES = {True: 8.5, False: 15.0}  # of a whole run, on a GPU or not
LEAST_SEC = 8.0  # a command with less time left is not begun
SHOWN_LINES, PROBLEM_CHARS = 3, 400  # of the error of a command that failed
SAID_CHARS = 200_000  # of each output of a command, in output.txt
NOTHING = "nothing"  # the section that says so, until there is another


class Ended(NamedTuple):
    """How a command ended."""

    printed: str
    errors: str
    seconds: float
    problem: str  # empty where there was none


def main(argv: Sequence[str] | None = None) -> int:
    known = [part.name for part in all_parts(on_gpu=True)]
    parser = argparse.ArgumentParser(prog="run.sh", description="Measure slmkit on a GPU.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default: all of {' '.join(known)}")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in tiny shapes; the figures say nothing")
    parser.add_argument("--minutes", type=float, help="of the whole run (default: 8.5, rehearsed 15)")
    parser.add_argument("--commit", help="of this code, where it is no git checkout")
    args = parser.parse_args(argv)
    on_gpu = not args.rehearse
    if unknown := set(args.parts) - set(known):
        parser.error(f"unknown parts: {' '.join(sorted(unknown))}; there are {' '.join(known)}")
    if on_gpu and not gpu():
        parser.error("no GPU is found (nvidia-smi); --rehearse runs the same parts on the CPU")
    chosen = [part for part in all_parts(on_gpu=on_gpu) if not args.parts or part.name in args.parts]
    with contextlib.ExitStack() as stack:
        place = Path(os.environ.get("OUT") or HERE / "results")
        if args.rehearse:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slmkit-rehearsal-")))
        pages = (place / PAGE, HERE / PAGE) if on_gpu else (place / PAGE,)
        record = Record(place, pages, machine(args.commit), page=(HERE / PAGE).read_text(encoding="utf-8"))
        runner = Runner(60 * (args.minutes or MINUTES[on_gpu]))
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, runner.stop)
        good = measure(chosen, record, runner)
        print(f"\n{record.written}")
        if on_gpu:
            print(f"written: {', '.join(map(str, pages))}, {place / RAW}, {place / SAID}")
        return 0 if good else 1


def measure(parts: Sequence[Part], record: "Record", runner: "Runner") -> bool:
    """Run the parts; whether all commands ended well and every part has rows. Untimed ones are run first, at once."""
    untimed = [part for part in parts if not part.is_timed]
    with ThreadPoolExecutor(max(1, len(untimed))) as pool:
        good = list(pool.map(lambda part: measure_part(part, record, runner), untimed))
    good += [measure_part(part, record, runner) for part in parts if part.is_timed]
    return all(good)


def measure_part(part: Part, record: "Record", runner: "Runner") -> bool:
    """Run the commands of a part in turn; whether all ended well and there are rows."""
    done, has_rows = list[Ended](), False
    for number, command in enumerate(part.commands, 1):
        show(f"{part.name} {number}/{len(part.commands)}: {' '.join(command.words)}")
        ended = runner.run(command)
        done.append(ended)
        show(f"{part.name} {number}/{len(part.commands)}: {ended.seconds:.0f} s {ended.problem}".rstrip())
        has_rows = record.put(part, done)
    return has_rows and not any(ended.problem for ended in done)


class Runner:
    """Runs commands for so many seconds in all. A command has a process group of its own, which is ended as a whole."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._running: set[subprocess.Popen[bytes]] = set()

    def stop(self, *_: Any) -> None:
        """End what is running, and begin nothing more. It is the handler of signals, too."""
        self._end = time.monotonic()
        for process in list(self._running):
            kill_group(process)

    def run(self, command: Command) -> Ended:
        """Run a command to its end, or as long as it may."""
        limit_sec = min(command.allowed_sec, self._end - time.monotonic())
        if limit_sec < min(LEAST_SEC, command.allowed_sec):
            return Ended("", "", 0.0, "no time was left")
        program = [sys.executable] if command.words[0] == "python" else [sys.executable, "-m", command.words[0]]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        begin, problem = time.perf_counter(), ""
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*program, *command.words[1:]],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=errors,
                start_new_session=True,
            )
            self._running.add(process)
            if time.monotonic() >= self._end:  # stopped meanwhile
                kill_group(process)
            try:
                process.wait(limit_sec)
            except subprocess.TimeoutExpired:
                problem = f"stopped after {limit_sec:.0f} s"
            finally:
                kill_group(process)
                process.wait()
                self._running.discard(process)
            texts = []
            for file in (printed, errors):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        if not problem and process.returncode:
            last = [line.strip() for line in (texts[1] or texts[0]).splitlines() if line.strip()][-SHOWN_LINES:]
            problem = f"ended with {process.returncode}{': ' if last else ''}{'; '.join(last)}"[:PROBLEM_CHARS]
        return Ended(texts[0], texts[1], time.perf_counter() - begin, problem)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has begun and left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@dataclass
class Record:
    """The three files of a run."""

    place: Path
    pages: tuple[Path, ...]  # where the page is written
    machine: dict[str, Any]
    page: str  # as it was before
    raw: dict[str, Any] = field(default_factory=dict)  # by part
    said: dict[str, str] = field(default_factory=dict)  # by part
    sections: dict[str, str] = field(default_factory=dict)  # of this run
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, ValueError):  # of a run before
            self.raw = json.loads((self.place / RAW).read_text(encoding="utf-8"))

    @property
    def written(self) -> str:
        """The sections of this run."""
        return "\n".join(self.sections.values())

    def put(self, part: Part, done: Sequence[Ended]) -> bool:
        """Write down what the commands of `part` have given so far; whether there are rows."""
        text = "\n".join(ended.printed for ended in done)
        output = Output(text, objects_in(text))
        tables, problems = list[Table](), [ended.problem for ended in done if ended.problem]
        try:
            tables = [table for table in part.tables(output) if table.rows]
        except (AttributeError, LookupError, TypeError, ValueError) as error:  # of what another program printed
            problems.append(f"what was printed is not understood: {error!r}")
        seconds = sum(ended.seconds for ended in done)
        section = section_of(part, tables, problems, self.machine, seconds)
        said = [transcript(*each) for each in zip(part.commands, done, strict=False)]
        with self.lock:
            if tables or f"<!-- {part.name} -->" not in self.page:
                self.page = with_section(self.page, part.name, section)
            self.sections[part.name], self.said[part.name] = section, "\n".join(said)
            self.raw[part.name] = {
                "machine": self.machine,
                "seconds": seconds,
                "problems": problems,
                "printed": output.objects or text[-SAID_CHARS:],
            }
            for path in self.pages:
                write(path, self.page)
            write(self.place / RAW, json.dumps(self.raw, indent=1) + "\n")
            write(self.place / SAID, "\n".join(self.said.values()))
        return bool(tables)


def transcript(command: Command, ended: Ended) -> str:
    """All that a command has said."""
    ending = f"-- {ended.seconds:.0f} s {ended.problem}"
    return "\n".join([f"== {' '.join(command.words)}", ended.printed[-SAID_CHARS:], ending, ended.errors[-SAID_CHARS:]])


def write(path: Path, text: str) -> None:
    """Whole or not at all, so that a run that is cut keeps what it had."""
    with atomic_write(path, replace=True) as file:
        file.write(text.encode(errors="backslashreplace"))


def section_of(
    part: Part, tables: Sequence[Table], problems: Sequence[str], where: dict[str, Any], seconds: float
) -> str:
    """A part's section of the page."""
    made = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    lines = [
        f"## {part.title}",
        "",
        f"{where['gpu'] or 'no GPU'}; {where['cpu']}, {where['cores']} cores; {made}; commit {where['commit']}; "
        f"{where['date']}; {seconds:.0f} s for `{part.name}`.",
    ]
    for table in tables:
        columns = list(table.rows[0])
        lines += ["", *([f"{table.title}", ""] if table.title else [])]
        lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(row.get(name, '-').replace('|', '/') for name in columns)} |" for row in table.rows]
    if not tables:
        lines += ["", "No rows."]
    lines += ["", *(f"Not all of it was measured: {problem}" for problem in problems)]
    return "\n".join(lines).rstrip() + "\n"


def with_section(page: str, name: str, section: str) -> str:
    """The page with the section `name` replaced, or added at its end. The first one takes the place of `NOTHING`."""
    marked = f"<!-- {name} -->\n{section}<!-- end of {name} -->\n"
    for known in (name, NOTHING):
        pattern = re.compile(f"<!-- {known} -->\n.*?<!-- end of {known} -->\n", re.DOTALL)
        if pattern.search(page):
            return pattern.sub(lambda _: marked, page, count=1)
    return f"{page.rstrip()}\n\n{marked}"


def objects_in(text: str) -> list[Any]:
    """The JSON objects that begin at the beginning of a line, in order; all else is passed over."""
    decoder, found, at = json.JSONDecoder(), [], 0
    starts = re.compile(r"^\{", re.MULTILINE)
    while (start := starts.search(text, at)) is not None:
        try:
            value, at = decoder.raw_decode(text, start.start())
        except ValueError:
            at = start.end()
            continue
        found.append(value)
    return found


def machine(commit: str | None) -> dict[str, Any]:
    """Where and with what is measured."""
    try:
        named = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        named = None
    return {
        "gpu": gpu(),
        "cpu": named.group(1) if named else "unknown CPU",
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        "commit": commit or git_commit() or f"unknown (code {code_sha256()[:12]})",
        "code_sha256": code_sha256(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def gpu() -> str:
    """Name, driver and memory of the first GPU; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    first = done.stdout.splitlines()[:1]
    if done.returncode or not first:
        return ""
    name, driver, memory = (word.strip() for word in first[0].split(","))
    return f"{name}, driver {driver}, {memory}"


def show(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
