"""Names, daemons and leftovers for tests that need several machines on this one."""

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

HOSTS = Path("/etc/hosts")
TERMS_SEC = 10.0


def need(*programs: str) -> None:
    """Skip, with the reason, where a program or the rights of root are missing."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [program for program in programs if shutil.which(program, path=path) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed on this machine")
    if os.geteuid() != 0:
        pytest.skip("starting daemons and naming machines in /etc/hosts needs root")


def program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found is not None
    return found


@contextmanager
def named(addresses: dict[str, str]) -> Iterator[None]:
    """Give names (name -> address) in /etc/hosts for the block; other test runs may do the same meanwhile."""
    lines = "".join(f"{address} {name} # slmkit test\n" for name, address in addresses.items())
    _edit_hosts(lambda text: text + ("" if text.endswith("\n") else "\n") + lines)
    try:
        yield
    finally:
        _edit_hosts(lambda text: text.replace(lines, ""))


def _edit_hosts(change: Callable[[str], str]) -> None:
    with open(HOSTS, "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text = change(file.read())
        file.seek(0)
        file.write(text)
        file.truncate()


@contextmanager
def daemon(words: Sequence[str], *, user: str | None = None, env: dict[str, str] | None = None) -> Iterator[int]:
    """A program that stays in the foreground, for the block; gives its process id. It ends with this process too."""
    process = subprocess.Popen(
        [program("setpriv"), "--pdeathsig", "TERM", program(words[0]), *words[1:]],
        user=user,
        group=user,
        extra_groups=[] if user else None,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(TERMS_SEC)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], limit_sec: float, what: Callable[[], str]) -> None:
    """Until `condition` holds; fails with `what()` after the limit."""
    deadline = time.monotonic() + limit_sec
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def processes_with(mark: str) -> list[int]:
    """Processes that carry `mark` in their environment or command line; not this one."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdecimal() or int(path.name) == os.getpid():
            continue
        try:
            words = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
        except OSError:  # ended meanwhile
            continue
        if mark.encode() in words:
            found.append(int(path.name))
    return found


def end(pids: Sequence[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
