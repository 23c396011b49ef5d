"""Work of one command on several devices: a process for each, which does its part of the work.

Example:
    code = run_processes([[*words, "--devices", device] for device in devices])
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from tqdm import tqdm

from slmkit.world import threads_each

POLL_SEC = 0.5  # between two looks at the processes


def run_processes(commands: Sequence[Sequence[str]], look: Callable[[set[int]], None] | None = None) -> int:
    """Run slmkit with each of the word lists; 0, or the first exit code that is not.

    `look` is called all the while, with the ids of the processes. When one fails, the others go on: what they finish is
    not lost. Raises Stopped when this process is told to stop, and what `look` raises, after all of them have ended.
    """

    def pass_on(lines: IO[str]) -> None:
        for line in lines:
            tqdm.write(line, file=sys.stderr, end="")  # above any bar

    environment = {"OMP_NUM_THREADS": str(threads_each(len(commands))), **os.environ}  # else each would take all CPUs
    processes: list[subprocess.Popen[str]] = []
    try:
        for words in commands:
            process = subprocess.Popen(
                [sys.executable, "-m", "slmkit", *words],
                env=environment,
                stderr=subprocess.PIPE,  # so that their lines come above the bar
                text=True,
                errors="replace",
            )
            processes.append(process)
        readers = [threading.Thread(target=pass_on, args=(process.stderr,)) for process in processes]
        for reader in readers:
            reader.start()
        while any(process.poll() is None for process in processes):
            time.sleep(POLL_SEC)
            if look is not None:
                look({process.pid for process in processes})
        for reader in readers:
            reader.join()
    finally:  # where it does not come to their end: they are told to stop too
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    return next((process.returncode for process in processes if process.returncode), 0)
