"""The machines of a DeepSpeed hostfile: names, slots, commands on them over ssh, and the checks that run there.

It takes ssh's options from PDSH_SSH_ARGS and PDSH_SSH_ARGS_APPEND, as pdsh does, so that a machine it reaches is one
that pdsh reaches.

On a machine that takes part, `slmkit launch` runs this file: to look whether training can start there, and to signal
its processes. The processes of a launch carry its id in their environment (SLMKIT_LAUNCH_ID), so that it finds its own
on any machine without a list of numbers, and never those of another run.

Invariant: a command on any number of machines has ended within REPLY_SEC, one by one or as a failure with a reason.

Example:
    hosts = read_hostfile("hostfile")           # lines such as "node1 slots=8"
    replies = ask(hosts, "hostname", os.environ)
    [reply.host for reply in replies if reply.code]

    python -m slmkit.cluster.hosts check MASTER_ADDR FILE...      prints a free port; exit code 1 and a reason if not
    python -m slmkit.cluster.hosts signal ID TERM ranks           or `all`; prints how many there were; 0 only counts
"""

import getpass
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from slmkit.data.lines import parse_line, read_lines
from slmkit.errors import UserError
from slmkit.texts import excerpt
from slmkit.world import LAUNCH_ID, free_port

CONNECT_SEC, REPLY_SEC = 10, 30  # the longest wait for a connection, and for everything
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SEC}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")  # as long as names of machines may be
LINE = re.compile(rf"({NAME.pattern})\s+slots=([1-9][0-9]{{0,4}})")
NO_CONNECTION = 255  # exit code of ssh
SHOWN_LINE = 100  # characters
COUNT = "0"  # in the place of a signal's name


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine and how many processes it has room for."""

    name: str
    slots: int


@dataclass(frozen=True, kw_only=True)
class HostReply:
    """What a command on a machine came to."""

    host: str
    code: int  # exit code; NO_CONNECTION when the machine was not reached
    shown: str  # standard output
    reason: str  # last line of standard error


def read_hostfile(path: str | Path) -> tuple[Host, ...]:
    """The machines of a hostfile, in order.

    Raises UserError when there is no such file, a line is not "NAME slots=N" (with its number), a machine stands there
    twice, or there is none.
    """
    try:
        lines = [(number, parse_line(line)) for number, line in read_lines(path)]
    except UserError as error:
        # DeepSpeed would train on this machine alone.
        raise UserError(
            f"cannot read the hostfile {path}: {error.what}", expected='a file of lines "node1 slots=8"'
        ) from error
    seen: dict[str, tuple[int, Host]] = {}
    for number, line in lines:
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{path}, line {number} is not a line of a hostfile",
                got=excerpt(repr(line), SHOWN_LINE),
                expected='"NAME slots=N", N from 1 to 99999',
            )
        host = Host(name=match[1], slots=int(match[2]))
        if host.name in seen:
            raise UserError(
                f"{path}, line {number} names {host.name} again",
                got=f"also in line {seen[host.name][0]}",
                expected="every machine once",
                next_step="give the machine one line with the sum of its slots",
            )
        seen[host.name] = (number, host)
    if not seen:
        raise UserError(f"the hostfile {path} names no machine", expected='lines "node1 slots=8"')
    return tuple(host for _, host in seen.values())


def ssh_words(host: str, command: str, env: Mapping[str, str]) -> list[str]:
    """The command line that runs `command` in a shell on `host`."""
    given = env.get("PDSH_SSH_ARGS", "").replace("%u", getpass.getuser()).replace("%h", "")
    options = shlex.split(f"{given} {env.get('PDSH_SSH_ARGS_APPEND', '')}")
    return ["ssh", *options, *SSH_OPTIONS, host, command]


def ask(hosts: Sequence[Host], command: str, env: Mapping[str, str]) -> list[HostReply]:
    """Run a command on all machines at once. Raises UserError when there is no ssh here."""
    if shutil.which("ssh") is None:
        raise UserError("there is no ssh on this machine", next_step="install an ssh client (openssh-client)")

    def ask_one(host: Host) -> HostReply:
        try:
            done = subprocess.run(
                ssh_words(host.name, command, env),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=REPLY_SEC,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return HostReply(host=host.name, code=NO_CONNECTION, shown="", reason=f"no answer within {REPLY_SEC} s")
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        return HostReply(
            host=host.name, code=done.returncode, shown=done.stdout.decode(errors="replace"), reason=reason
        )

    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return list(pool.map(ask_one, hosts))


def problem_here(master_addr: str, files: Sequence[str]) -> str | None:
    """Why training cannot start on this machine, if it cannot."""
    missing = [file for file in files if not os.access(file, os.R_OK)]
    if missing:
        return f"cannot read {', '.join(missing)}"
    try:
        socket.getaddrinfo(master_addr, None)
    except OSError as error:
        return f"does not know the master address {master_addr}: {error.strerror}"
    return None


def signal_number(name: str) -> int:
    """The number of "TERM", "KILL", ...; 0 for COUNT, which is sent to nobody but finds who is there."""
    return 0 if name == COUNT else signal.Signals[f"SIG{name}"]


def signal_processes(launch_id: str, number: int, *, ranks_only: bool) -> int:
    """Send a signal to the processes of a launch on this machine; gives how many.

    `ranks_only` leaves out the launchers above the ranks and the data workers below them.
    """
    mark = f"{LAUNCH_ID}={launch_id}".encode()
    marked, ranks = set(), dict[int, int]()  # numbers; of those, ranks with their parents
    for directory in Path("/proc").iterdir():
        if not directory.name.isdecimal():
            continue
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # ended meanwhile, or another user's
            continue
        if mark in environment:
            marked.add(int(directory.name))
            if any(word.startswith(b"RANK=") for word in environment):
                ranks[int(directory.name)] = parent
    num_sent = 0
    for pid in {pid for pid, parent in ranks.items() if parent not in ranks} if ranks_only else marked:
        try:
            os.kill(pid, number)
        except OSError:
            continue
        num_sent += 1
    return num_sent


def main(words: Sequence[str]) -> int:
    """See the module's example."""
    verb, *rest = words
    if verb == "check":
        problem = problem_here(rest[0], rest[1:])
        print(problem or free_port(), file=sys.stderr if problem else sys.stdout)
        return 1 if problem else 0
    launch_id, name, which = rest
    print(signal_processes(launch_id, signal_number(name), ranks_only=which == "ranks"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
