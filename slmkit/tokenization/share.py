"""One task on several devices: a process for each, which takes a part of the task's shards.

A signal to this process goes on to all of them; the exit code is that of the first that failed.

Example:
    run_on_devices(["--config", "libritts.yaml"], ["cuda:0", "cuda:1"], task=3, num_tasks=8)
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from slmkit.stopping import Stopped


def run_on_devices(words: Sequence[str], devices: Sequence[str], *, task: int, num_tasks: int) -> int:
    """Start `slmkit tokenize run WORDS` for each device and wait; 0, or the first exit code that is not.

    Device i of n does what task `task * n + i` of `num_tasks * n` would. When one fails, the others go on: what they
    finish is not lost. Raises Stopped when this process is told to stop, after all of them have ended.
    """
    count = len(devices)
    commands = [
        [
            *(sys.executable, "-m", "slmkit", "tokenize", "run", *words, "--devices", device),
            *("--task", str(task * count + i), "--num-tasks", str(num_tasks * count)),
        ]
        for i, device in enumerate(devices)
    ]
    threads = str(max(1, len(os.sched_getaffinity(0)) // count))  # else each would take all CPUs
    environment = {"OMP_NUM_THREADS": threads, **os.environ}
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        codes = [process.wait() for process in processes]
    except Stopped:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait()
        raise
    return next((code for code in codes if code), 0)
