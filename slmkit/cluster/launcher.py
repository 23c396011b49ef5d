"""Starts a `LaunchPlan`, watches it, and ends it whole.

DeepSpeed's own launcher waits for ever when a machine is lost, answers Ctrl-C with `pkill -f` of every DeepSpeed run
on the machines, and tells the ranks nothing of a signal. Here a signal to the launcher goes to the ranks alone, which
write a checkpoint and leave with STOPPED; a lost machine, a second signal, or ranks that outlive a crash end all
processes of this launch, on every machine, by their numbers. So does the end of a launcher below this one while its
ranks go on; and when this process itself is killed, a child of it asks the ranks for a checkpoint and ends them.

Invariant: when `start` returns or raises, no process of the launch is left on a machine that can be reached.

Example:
    check_hosts(plan)                  # UserError naming every machine that does not answer
    code = start(plan, port)
"""

import contextlib
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from slmkit.cluster.hosts import COUNT, NO_CONNECTION, SSH_OPTIONS, ask, signal_number, signal_processes
from slmkit.cluster.launch import LaunchPlan, is_secret, pdsh_value
from slmkit.data.lines import parse_line, read_lines
from slmkit.errors import UserError
from slmkit.log import get_logger
from slmkit.stopping import CRASH, STOPPED, USER_ERROR
from slmkit.world import LAUNCH_END, LAUNCH_ID, free_port

log = get_logger(__name__)
POLL_SEC = 0.2
END = "end"  # file of the scratch directory, for LAUNCH_END
CRASH_GRACE_SEC = 30.0  # how long the other machines may go on after one has failed
SURVIVED_GRACE_SEC = 10.0  # how long ranks may go on when this process was killed
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# A machine that vanishes without closing its connection is noticed within 40 s.
ALIVE = ("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3")
EXPORTED = ("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL")  # by DeepSpeed's launcher, whatever follows
PDSH_FAILURE = re.compile(rb"pdsh@\S+: (\S+): \S+ exited with exit code (\d+)")


def check_hosts(plan: LaunchPlan, files: tuple[str, ...], env: Mapping[str, str]) -> int:
    """Look at every machine at once: reachable, with this Python, slmkit, directory and the files.

    Gives a free port of the first one. Raises UserError naming all that cannot take part, with their reasons.
    """
    if shutil.which("pdsh", path=env.get("PATH")) is None:
        raise UserError("there is no pdsh on this machine", next_step="install pdsh, which DeepSpeed's launcher uses")
    replies = ask(plan.hosts, _remote_command(plan, "check", plan.master_addr, *files), env)
    failures = [reply for reply in replies if reply.code]
    if failures:
        unreached = all(reply.code == NO_CONNECTION for reply in failures)
        raise UserError(
            f"cannot {'reach' if unreached else 'train on'} {', '.join(reply.host for reply in failures)}",
            got="".join(f"\n    {reply.host}: {reply.reason}" for reply in failures),
            expected=f"on every machine: ssh without a password, slmkit in {sys.executable}, {Path.cwd()}, the files",
            next_step="repair these machines or remove them from the hostfile; nothing was started",
        )
    return int(replies[0].shown.split()[-1])


def start(plan: LaunchPlan, port: int | None, env: Mapping[str, str]) -> int:
    """Run the plan to its end and give its exit code: 0, USER_ERROR or STOPPED as the ranks have it, CRASH for a lost
    machine, a launcher or rank that was killed, and all else.

    Gives 128 + the signal's number when a signal came before there were ranks to tell, or came twice.
    """
    return _Launch(plan, port or plan.master_port or free_port(), env).run()


class _Launch:
    """One start of a plan."""

    def __init__(self, plan: LaunchPlan, port: int, env: Mapping[str, str]) -> None:
        self.plan, self.port = plan, port
        self.launch_id = secrets.token_hex(8)
        self.env = {name: value for name, value in env.items() if name not in RANK_VARIABLES}
        self.signals: list[int] = []
        self.failures: dict[str, int] = {}  # machine -> exit code, as pdsh tells them
        self.last_words: dict[str, str] = {}  # machine -> what ssh said last

    def run(self) -> int:
        code: int | None = None
        with (
            self._signals_caught(),
            tempfile.TemporaryDirectory(prefix="slmkit-launch-") as scratch,
            self._survived(Path(scratch)),
        ):
            process = subprocess.Popen(
                self._command(Path(scratch)),
                env=self._child_env(Path(scratch)),
                # Ctrl-C reaches this process only, which tells the ranks.
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if self.plan.hosts else None,
            )
            reader = threading.Thread(target=self._read, args=(process.stderr,), daemon=True)
            if process.stderr is not None:
                reader.start()
            try:
                code = self._watch(process)
                if process.poll() is not None and not self._lost_hosts() and self._signal(COUNT, ranks_only=True):
                    log.error("a launcher below this one ended before its processes; asking them for a checkpoint")
                    self._end_ranks(CRASH_GRACE_SEC)
                    code = CRASH
                elif code == 0 and not self.plan.hosts and _noted(Path(scratch)) != "0":
                    log.error(
                        "a launcher below this one was killed; its processes have ended before their work was done"
                    )
                    code = CRASH
            finally:
                if code is None or code not in (0, STOPPED):
                    self._signal("KILL", ranks_only=False)
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if process.stderr is not None:
                    reader.join(timeout=5)
        # Otherwise the ranks have said what there is to say, or a second signal asked for the end.
        if code not in (0, USER_ERROR, STOPPED) and not self.signals:
            log.error("training ended with exit code %d; its processes may have said why above", code)
            code = CRASH  # a rank that was killed, for one, has no exit code of its own
        return code

    def _end_ranks(self, grace_sec: float) -> None:
        """Ask the ranks for a checkpoint; end all processes when they are gone, at the latest after `grace_sec`."""
        deadline = time.monotonic() + grace_sec
        self._signal("TERM", ranks_only=True)
        while self._signal(COUNT, ranks_only=True) and time.monotonic() < deadline and len(self.signals) < 2:
            time.sleep(POLL_SEC)
        self._signal("KILL", ranks_only=False)

    @contextmanager
    def _survived(self, scratch: Path) -> Iterator[None]:
        """A child of this process, for the block, that ends the ranks when this process is killed."""
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                os.close(write)
                for number in SIGNALS:
                    signal.signal(number, signal.SIG_IGN)
                if not os.read(read, 1):  # the other end was closed without a word
                    self._end_ranks(SURVIVED_GRACE_SEC)
                    shutil.rmtree(scratch, ignore_errors=True)
            finally:
                os._exit(0)
        os.close(read)
        try:
            yield
        finally:
            with contextlib.suppress(BrokenPipeError):
                os.write(write, b"1")
            os.close(write)
            os.waitpid(child, 0)

    def _watch(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for the end; what it returns, and what it does on the way, is the policy of this module."""
        num_handled, failed_at = 0, 0.0
        while process.poll() is None:
            if self._lost_hosts():
                return self._tell_lost()
            if num_handled < len(self.signals):
                num_handled += 1
                number = self.signals[num_handled - 1]
                name = signal.Signals(number).name
                if num_handled > 1:
                    log.warning("%s again: ending all processes without a checkpoint", name)
                    return 128 + number
                log.warning("%s: asking every process for a checkpoint; once more ends them at once", name)
                if not self._signal("TERM", ranks_only=True):
                    log.warning("training had not started; ending")
                    return 128 + number
            bad = {host: code for host, code in list(self.failures.items()) if code != STOPPED}
            failed_at = failed_at or (time.monotonic() if bad else 0.0)
            if bad and time.monotonic() - failed_at > CRASH_GRACE_SEC:
                log.error("%s failed; ending the processes on the other machines", ", ".join(bad))
                return max(bad.values())
            time.sleep(POLL_SEC)
        if self._lost_hosts():
            return self._tell_lost()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _lost_hosts(self) -> list[str]:
        return [host for host, code in list(self.failures.items()) if code == NO_CONNECTION]

    def _tell_lost(self) -> int:
        for host in self._lost_hosts():
            log.error("lost %s: %s", host, self.last_words.get(host, f"ssh ended with exit code {NO_CONNECTION}"))
        log.error(
            "ending all processes; start again when the machines are back: training continues from its checkpoint"
        )
        return CRASH

    def _read(self, stream: IO[bytes]) -> None:
        """Pass standard error on, and notice what pdsh says of its machines."""
        for line in stream:
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
            failure = PDSH_FAILURE.match(line)
            if failure:
                self.failures[failure[1].decode()] = int(failure[2])
                continue
            host, colon, words = line.decode(errors="replace").partition(": ")
            if colon and host in {each.name for each in self.plan.hosts}:
                self.last_words[host] = words.strip()

    def _signal(self, name: str, *, ranks_only: bool) -> int:
        """Signal the processes of this launch, wherever they are; gives how many."""
        which = "ranks" if ranks_only else "all"
        if not self.plan.hosts:
            return signal_processes(self.launch_id, signal_number(name), ranks_only=ranks_only)
        command = _remote_command(self.plan, "signal", self.launch_id, name, which)
        replies = ask(self.plan.hosts, command, self.env)
        return sum(int(reply.shown.split()[-1]) for reply in replies if reply.code == 0)

    def _command(self, scratch: Path) -> list[str]:
        """The command line, with a hostfile of what was read: DeepSpeed takes a byte order mark for part of a name."""
        command = self.plan.command_at(self.port)
        if self.plan.hosts:
            file = scratch / "hostfile"
            file.write_text("".join(f"{host.name} slots={host.slots}\n" for host in self.plan.hosts))
            command[command.index("--hostfile") + 1] = str(file)
        return command

    def _child_env(self, scratch: Path) -> dict[str, str]:
        """The launcher's environment; DeepSpeed reads from a file what it exports on the other machines."""
        mark = {LAUNCH_ID: self.launch_id}
        if not self.plan.hosts:
            return {**self.env, **mark, LAUNCH_END: str(scratch / END)}
        exports = {name: pdsh_value(value) for name, value in {**self.plan.travelling, **mark}.items()}
        lines = [*_own_exports(self.env), *(f"{name}={value}" for name, value in exports.items())]
        file = scratch / "deepspeed_env"
        file.write_text("".join(f"{line}\n" for line in lines))
        options = shlex.join([*SSH_OPTIONS, *ALIVE])
        appended = f"{self.env.get('PDSH_SSH_ARGS_APPEND', '')} {options}".strip()
        # DeepSpeed puts these of our environment into pdsh's command line, beside those of the file.
        kept = {name: v for name, v in self.env.items() if not (name.startswith(EXPORTED) and is_secret(name))}
        return {**kept, **mark, "DS_ENV_FILE": str(file), "PDSH_SSH_ARGS_APPEND": appended}

    @contextmanager
    def _signals_caught(self) -> Iterator[None]:
        def remember(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        # nohup ignores SIGHUP; so does this then.
        caught = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        before = {number: signal.signal(number, remember) for number in caught}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _noted(scratch: Path) -> str:
    """The exit code of the first process. DeepSpeed's launcher ends with 0 where the one below it was killed."""
    return (scratch / END).read_text() if (scratch / END).is_file() else ""


def _own_exports(env: Mapping[str, str]) -> list[str]:
    """The lines of the user's own .deepspeed_env, which ours takes the place of."""
    name = env.get("DS_ENV_FILE", ".deepspeed_env")
    files = [Path.home() / name, Path(name)]
    lines = [parse_line(line) for file in files if file.is_file() for _, line in read_lines(file)]
    exports = {line: line.partition("=")[0].strip() for line in lines if "=" in line}
    for secret in filter(is_secret, exports.values()):
        log.warning("%s of %s stays here: it would stand in a command line; set it on the machines", secret, name)
    return [line for line, variable in exports.items() if not is_secret(variable)]


def _remote_command(plan: LaunchPlan, *words: str) -> str:
    """The shell command that runs `slmkit.cluster.hosts` as the ranks run: same directory, Python, variables."""
    exports = [f"{name}={value}" for name, value in plan.travelling.items()]
    python = ["env", *exports, sys.executable, "-m", "slmkit.cluster.hosts", *words]
    return f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(python)}"
