"""What sbatch is given and answers, with a program that stands in its place; real jobs are tests/launch/ and
tests/tokenization/test_slurm_array.py."""

import sys
from pathlib import Path

import pytest

from slmkit.cluster.slurm import submit
from slmkit.errors import UserError


def sbatch(directory: Path, *lines: str) -> dict[str, str]:
    """An environment whose sbatch does this."""
    path = directory / "sbatch"
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return {"PATH": f"{directory}:/usr/bin:/bin", "COLOUR": "red"}


def test_the_id_of_the_job_is_given(tmp_path: Path) -> None:
    env = sbatch(tmp_path, f'echo "$PATH $COLOUR $*" > {tmp_path}/given', "echo '1234;north'")
    assert submit(["sbatch", "--time=3", "a b.sbatch"], env) == "1234"
    path, _, words = (tmp_path / "given").read_text().partition(" ")
    assert path == f"{Path(sys.executable).parent}:{env['PATH']}"
    assert words == "red --parsable --time=3 a b.sbatch\n"


def test_a_refused_job_is_a_user_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    env = sbatch(tmp_path, "echo 'invalid partition: north' >&2", "exit 3")
    with pytest.raises(UserError, match=r"Slurm did not accept the job\n.*exit code 3 of sbatch"):
        submit(["sbatch", "x.sbatch"], env)
    assert capfd.readouterr().err == "invalid partition: north\n"


def test_a_machine_without_slurm_is_a_user_error() -> None:
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        submit(["sbatch", "x.sbatch"], {"PATH": "/nowhere"})
