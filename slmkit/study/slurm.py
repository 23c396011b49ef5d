"""All steps of a study as Slurm jobs: each begins when those that it needs have succeeded, and requeues itself.

A job runs `slmkit study step` by the script launch/train.sbatch, which deals with exit code 75, time limits, preemption
and crashes. The name of a job tells the study and the step: submitting again, also after a submission that was killed,
submits what is neither done nor queued. Slurm takes a job back whose needs failed; the others go on. A last job, after
all of them, writes the table.

Invariant: a job depends on the jobs of all steps that it needs and that are not done.

Example:
    ids = submit_study(plan, "study.yaml", [], more=["--partition=gpu"], env=os.environ)   # {"codec-a": "17", ...}
"""

import hashlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from slmkit.assets import folder
from slmkit.cluster.launch import check_no_secrets
from slmkit.cluster.slurm import submit
from slmkit.errors import UserError
from slmkit.study.config import Resources
from slmkit.study.plan import StudyPlan
from slmkit.study.work import look

STEP, TABLE = "study step", "study table"  # commands that jobs run
LAST = "table"  # the name of the last job, in place of a step's


def submit_study(
    plan: StudyPlan, file: str, overrides: Sequence[str], *, more: Sequence[str] = (), env: Mapping[str, str]
) -> dict[str, str]:
    """Submit what is neither done nor queued; gives the ids of the jobs by the name of the step, queued ones too.

    `more` are words for sbatch, of all jobs. Raises UserError when a step was made with other settings or is done by a
    process outside Slurm, and when there is no Slurm or it refuses a job; jobs that it has taken before stay.
    """
    check_no_secrets(more)
    file, statuses, queued = str(Path(file).resolve()), look(plan), queued_jobs(plan, env)
    changed = [name for name, status in statuses.items() if status.state == "changed"]
    if changed:
        raise UserError(f"{changed[0]} was made with other settings", next_step=statuses[changed[0]].why)
    held = [name for name, status in statuses.items() if status.state == "running" and name not in queued]
    if held:  # its job would end at once, and those that need it be cancelled
        what = f"{held[0]} is being done by a process that is no job of this study"
        raise UserError(what, next_step="stop it, or wait for its end, and submit again")
    ids: dict[str, str] = {}
    for name, status in statuses.items():
        if status.state == "done":
            continue
        if name in queued:
            ids[name] = queued[name]
            continue
        step = plan.by_name[name]
        after = [ids[need] for need in step.needs if need in ids]
        ids[name] = submit(
            [
                *_job(plan, name, plan.resources(step), more),
                *_dependency("afterok", after),
                *(str(_script()), file, name, *overrides),
            ],
            _environment(plan, env, STEP),
        )
    if ids and LAST in queued:  # it waits for less than there is now
        subprocess.run(["scancel", queued[LAST]], env=dict(env), check=False)
    if ids:
        command = [*_job(plan, LAST, Resources(), more), *_dependency("afterany", ids.values())]
        ids[LAST] = submit([*command, str(_script()), file, *overrides], _environment(plan, env, TABLE))
    return ids


def job_name(plan: StudyPlan, step: str) -> str:
    """The name of a job: which study, by its directory, and which step."""
    study = hashlib.sha256(str(Path(plan.config.out).resolve()).encode()).hexdigest()[:8]
    return f"slmkit-{study}.{step}"


def queued_jobs(plan: StudyPlan, env: Mapping[str, str]) -> dict[str, str]:
    """Ids of the jobs of this study that wait or run, by the name of the step. Raises UserError without Slurm."""
    words = ["squeue", "--me", "--noheader", "--format=%i %j"]
    try:
        done = subprocess.run(words, env=dict(env), capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError(
            "there is no Slurm on this machine", next_step="submit from a machine of the cluster, or leave out --slurm"
        ) from error
    if done.returncode:
        raise UserError("Slurm does not say which jobs are queued", got=done.stderr.strip()[:300])
    prefix = job_name(plan, "")
    rows = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.strip()]
    return {name.strip().removeprefix(prefix): job for job, name in rows if name.startswith(prefix)}


def _job(plan: StudyPlan, name: str, resources: Resources, more: Sequence[str]) -> list[str]:
    log = Path(plan.config.out).resolve() / "steps" / f"{name}.job.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = {
        "nodes": resources.nodes,
        "ntasks-per-node": resources.processes,
        "cpus-per-task": resources.cpus,
        "gpus-per-node": resources.gpus or None,
        "time": resources.time,
    }
    return [
        *("sbatch", f"--job-name={job_name(plan, name)}", f"--output={log}", "--kill-on-invalid-dep=yes"),
        *(f"--{option}={value}" for option, value in asked.items() if value is not None),
        *more,
    ]


def _dependency(kind: str, ids: Iterable[str]) -> list[str]:
    found = list(ids)
    return [f"--dependency={':'.join([kind, *found])}"] if found else []


def _script() -> Path:
    return folder("launch") / "train.sbatch"


def _environment(plan: StudyPlan, env: Mapping[str, str], command: str) -> dict[str, str]:
    """The crashes of jobs are counted beside the logs of steps."""
    state = str((Path(plan.config.out) / "steps").resolve())
    return {**env, "SLMKIT_COMMAND": command, "STATE_DIR": state}
