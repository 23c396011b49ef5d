"""Hands jobs to Slurm.

It knows how sbatch is called and answers, and nothing of what a job does.

Invariant: a job finds the `slmkit` of this Python before any other.

Example:
    submit(["sbatch", "--time=30", "launch/train.sbatch", "--config", "run.yaml"], os.environ)     # "1234"
"""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

from slmkit.errors import UserError


def submit(command: Sequence[str], env: Mapping[str, str]) -> str:
    """Run an sbatch command line with these variables, which the job gets too; gives the job's id.

    What sbatch says on standard error goes to this process's. Raises UserError when there is no sbatch or it refuses.
    """
    program, *words = command
    path = f"{os.path.dirname(sys.executable)}:{env.get('PATH', os.defpath)}"
    try:
        done = subprocess.run(
            [program, "--parsable", *words], env={**env, "PATH": path}, stdout=subprocess.PIPE, text=True, check=False
        )
    except FileNotFoundError as error:
        raise UserError(
            "there is no sbatch on this machine", next_step="submit from a machine of the cluster"
        ) from error
    if done.returncode:
        raise UserError(
            "Slurm did not accept the job",
            got=f"exit code {done.returncode} of sbatch; see its message above",
            next_step="change the options for Slurm",
        )
    return done.stdout.strip().partition(";")[0]  # "id;cluster" where there are several clusters
