"""What `slmkit launch` runs on a machine that takes part: look whether training can start there, signal its processes.

The processes of a launch carry its id in their environment (SLMKIT_LAUNCH_ID), so that it finds its own on any machine
without a list of numbers, and never those of another run.

Example:
    python -m slmkit.cluster.remote check MASTER_ADDR FILE...     prints a free port; exit code 1 and a reason if not
    python -m slmkit.cluster.remote signal ID TERM ranks          or `all`; prints how many there were
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from slmkit.world import free_port

LAUNCH_ID = "SLMKIT_LAUNCH_ID"


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


def signal_processes(launch_id: str, number: int, *, ranks_only: bool) -> int:
    """Send a signal to the processes of a launch on this machine; gives how many.

    `ranks_only` leaves out the launchers above the ranks and the data workers below them.
    """
    mark = f"{LAUNCH_ID}={launch_id}".encode()
    marked = {pid: words for pid in _all_pids() if mark in (words := _environment(pid))}
    ranks = {pid for pid, words in marked.items() if any(word.startswith(b"RANK=") for word in words)}
    chosen = {pid for pid in ranks if _parent(pid) not in ranks} if ranks_only else set(marked)
    return sum(_send(pid, number) for pid in chosen)


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # ended meanwhile, or another user's
        return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _send(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def main(words: Sequence[str]) -> int:
    """See the module's example."""
    verb, *rest = words
    if verb == "check":
        problem = problem_here(rest[0], rest[1:])
        print(problem or free_port(), file=sys.stderr if problem else sys.stdout)
        return 1 if problem else 0
    launch_id, name, which = rest
    print(signal_processes(launch_id, signal.Signals[f"SIG{name}"], ranks_only=which == "ranks"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
