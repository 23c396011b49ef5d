"""The machines of a DeepSpeed hostfile: who they are, whether they answer, and commands on them over ssh.

It takes ssh's options from PDSH_SSH_ARGS and PDSH_SSH_ARGS_APPEND, as pdsh does, so that a machine it reaches is one
that pdsh reaches. It knows nothing of training.

Invariant: a question to any number of machines is answered within ANSWER_SEC, one by one or as a failure with a reason.

Example:
    hosts = read_hostfile("hostfile")           # lines such as "node1 slots=8"
    answers = ask(hosts, "hostname", os.environ)
    [answer.host for answer in answers if answer.code]
"""

import getpass
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from slmkit.errors import UserError

CONNECT_SEC, ANSWER_SEC = 10, 30  # the longest wait for a connection, and for everything
SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SEC}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
LINE = re.compile(rf"({NAME.pattern})\s+slots=([1-9][0-9]*)")
NO_CONNECTION = 255  # exit code of ssh


@dataclass(frozen=True, kw_only=True)
class Host:
    """A machine and how many processes it has room for."""

    name: str
    slots: int


@dataclass(frozen=True, kw_only=True)
class Answer:
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
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        # DeepSpeed would train on this machine alone.
        raise UserError(
            f"cannot read the hostfile {path}: {error}", expected='a file of lines "node1 slots=8"'
        ) from error
    seen: dict[str, tuple[int, Host]] = {}
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = LINE.fullmatch(text)
        if match is None:
            raise UserError(
                f"{path}, line {number} is not a line of a hostfile",
                got=repr(line),
                expected='"NAME slots=N", N from 1',
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


def ask(hosts: Sequence[Host], command: str, env: Mapping[str, str]) -> list[Answer]:
    """Run a command on all machines at once. Raises UserError when there is no ssh here."""
    if shutil.which("ssh") is None:
        raise UserError("there is no ssh on this machine", next_step="install an ssh client (openssh-client)")

    def ask_one(host: Host) -> Answer:
        try:
            done = subprocess.run(
                ssh_words(host.name, command, env),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=ANSWER_SEC,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Answer(host=host.name, code=NO_CONNECTION, shown="", reason=f"no answer within {ANSWER_SEC} s")
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        reason = lines[-1].strip() if lines else f"exit code {done.returncode}"
        return Answer(host=host.name, code=done.returncode, shown=done.stdout.decode(errors="replace"), reason=reason)

    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        return list(pool.map(ask_one, hosts))
