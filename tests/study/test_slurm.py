"""A study as Slurm jobs: which are submitted, and a real cluster on which a node dies."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from launch.machines import processes_with, wait_for
from launch.slurm import Slurm, slurm
from train.ranks import ROOT

from slmkit.config.load import from_dict
from slmkit.errors import UserError
from slmkit.study.config import StudyConfig
from slmkit.study.plan import StudyPlan, plan_study
from slmkit.study.slurm import job_name, submit_study
from slmkit.study.work import paths, take

STEPS, SOME = 300, 8  # of a training, and after how many of them the node dies
FAKE = """#!/bin/sh
# Answers as Slurm does: ids count up from 1; jobs are written down, the queue is a file.
case "$(basename "$0")" in
sbatch) echo "$SLMKIT_COMMAND $*" >>"$PLACE/jobs"; wc -l <"$PLACE/jobs" ;;
squeue) cat "$PLACE/queue" 2>/dev/null || true ;;
scancel) echo "$1" >>"$PLACE/cancelled" ;;
esac
"""


def tiny(root: Path) -> StudyPlan:
    values = {
        "out": str(root / "OUT"),
        "corpora": {"c": {"source": "audio"}},
        "codecs": {"a": {"add": "ORG/A"}, "b": {"path": "ORG/B"}},
        "bases": {"qwen": {"path": "ORG/Q"}},
        "groups": [0],
        "stages": [{"name": "s", "config": "quickstart", "sources": [{"corpus": "c"}]}],
        "evaluations": {"e": {"corpus": "c"}},
        "resources": {"train": {"nodes": 2, "processes": 8, "gpus": 8, "time": "24:00:00"}},
    }
    return plan_study(from_dict(StudyConfig, values))


def test_jobs_depend_on_those_that_they_need_and_none_is_submitted_twice(tmp_path: Path) -> None:
    for name in ("sbatch", "squeue", "scancel"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    path = f"{Path(sys.executable).parent}:{tmp_path}:{os.environ['PATH']}"
    env, plan = {**os.environ, "PATH": path, "PLACE": str(tmp_path)}, tiny(tmp_path)
    done = plan.step("codec-a")
    Path(done.directory).mkdir(parents=True)
    record = paths(plan, done)[0]
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"digest": done.digest, "state": "done"}))

    ids = submit_study(plan, "study.yaml", ["at_once=1"], more=["--partition=gpu"], env=env)
    jobs = [line.split() for line in (tmp_path / "jobs").read_text().splitlines()]
    assert list(ids) == [*(step.name for step in plan.steps if step.name != "codec-a"), "table"]
    by_name = {name: jobs[int(job) - 1] for name, job in ids.items()}
    first, train, last = by_name["shards-c-a"], by_name["train-a-qwen-ntp-s"], by_name["table"]
    assert not any(word.startswith("--dependency") for word in first), "what it needs is done"
    assert {f"--dependency=afterok:{ids['shards-c-a']}", "--partition=gpu", "--kill-on-invalid-dep=yes"} <= {*train}
    assert {"--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=24:00:00"} <= {*train}
    assert train[:2] == ["study", "step"]
    script, study, step, *rest = train[-4:]
    assert (Path(script).name, Path(study).name, step, rest) == (
        *("train.sbatch", "study.yaml", "train-a-qwen-ntp-s", ["at_once=1"]),
    )
    assert last[:2] == ["study", "table"]
    every = ":".join(job for name, job in ids.items() if name != "table")
    assert f"--dependency=afterany:{every}" in last

    waiting = ("shards-c-a", "train-a-qwen-ntp-s", "table")  # as after a submission that was killed
    (tmp_path / "queue").write_text("".join(f"{ids[name]} {job_name(plan, name)}\n" for name in waiting) + "99 other\n")
    again = submit_study(plan, "study.yaml", [], env=env)
    assert {name: again[name] for name in waiting[:2]} == {name: ids[name] for name in waiting[:2]}
    assert (tmp_path / "cancelled").read_text().split() == [ids["table"]]
    jobs = [line.split() for line in (tmp_path / "jobs").read_text().splitlines()]
    assert f"--dependency=afterok:{ids['train-a-qwen-ntp-s']}" in jobs[int(again["export-a-qwen-ntp-s"]) - 1]
    held = take(plan, plan.step("train-a-qwen-ntp-s"))  # by its job, as the queue says
    assert held is not None
    assert "train-a-qwen-ntp-s" in submit_study(plan, "study.yaml", [], env=env)
    held.release()
    held = take(plan, plan.step("shards-c-b"))  # by a `slmkit study run`
    assert held is not None
    num_jobs = len((tmp_path / "jobs").read_text().splitlines())
    with pytest.raises(UserError, match="shards-c-b is being done by a process that is no job of this study"):
        submit_study(plan, "study.yaml", [], env=env)
    assert len((tmp_path / "jobs").read_text().splitlines()) == num_jobs
    held.release()
    with pytest.raises(UserError, match="a secret would stand in a command line"):
        submit_study(plan, "study.yaml", [], more=["--export=ALL,MY_TOKEN=1"], env=env)


def num_steps(metrics: Path) -> int:
    """Logged steps of a run so far."""
    return metrics.read_text().count('"loss"') if metrics.exists() else 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


@pytest.mark.full
def test_a_study_ends_with_its_table_although_a_node_dies(cluster: Slurm, tmp_path: Path) -> None:
    """One model, and one whose training cannot begin; the node of the first dies while it trains."""
    values = {
        "out": str(tmp_path / "OUT"),
        "corpora": {"demo": {"source": str(ROOT / "tokenize_jobs/sample_corpus/11"), "options": "--num-workers 0"}},
        "codecs": {"melvq1": {"fit": str(ROOT / "tokenize_jobs/sample_corpus"), "options": "--streams 1"}},
        "bases": {
            "tiny": {"texts": "demo", "options": "--hidden-size 32 --num-layers 1 --num-heads 1"},
            "gone": {"path": "/nowhere/base"},
        },
        "groups": [3],
        "speaker": [True],
        "stages": [
            {
                "name": "s",
                "config": str(ROOT / "launch/quickstart.yaml"),
                "sources": [{"corpus": "demo", "max_samples": 2}],
                "options": f"steps={STEPS} save_every_steps=5 log_every_steps=1 speak_every_steps=0 global_rows=1 "
                "micro_rows=1",
            }
        ],
        "evaluations": {"said": {"corpus": "demo", "options": "--trained --limit 1 --max-sec 1"}},
    }
    study = tmp_path / "study.yaml"
    study.write_text(json.dumps(values))
    words = [sys.executable, "-m", "slmkit", "study", "run", str(study), "--slurm"]
    done = subprocess.run(words, env=cluster.env, capture_output=True, text=True, check=False, cwd=cluster.directory)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs = {name: job for job, name in re.findall(r"job (\d+): (\S+)", done.stdout)}
    good, bad = "melvq1-tiny-mtp3-linear-mlp-speaker-s", "melvq1-gone-mtp3-linear-mlp-speaker-s"
    metrics = tmp_path / "OUT" / "runs" / good / "metrics.jsonl"

    def log(name: str) -> str:
        path = tmp_path / "OUT" / "steps" / f"{name}.job.log"
        return path.read_text() if path.exists() else ""

    train = jobs[f"train-{good}"]
    wait_for(lambda: num_steps(metrics) >= SOME, 240, lambda: log(f"train-{good}") or str(jobs))
    node = re.search(r"\bNodeList=(\S+)", cluster.call("scontrol", "show", "job", train))
    assert node is not None
    processes = processes_with(f"SLURM_JOB_ID={train}")
    # Down first: Slurm would take the end of the job's script on a node that is up for the end of the job.
    cluster.call("scontrol", "update", f"NodeName={node[1]}", "State=DOWN", "Reason=dead")
    for pid in processes:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "start 2" in log(f"train-{good}"), 120, lambda: log(f"train-{good}"))
    wait_for(lambda: cluster.state(jobs["table"]) == "COMPLETED", 480, lambda: cluster.call("squeue"))

    assert "study step is done" in log(f"train-{good}")
    assert "study step refused to run (exit code 2, see above): not requeued" in log(f"train-{bad}")
    assert cluster.state(jobs[f"export-{bad}"]) == "CANCELLED"
    table = (tmp_path / "OUT" / "table" / "table.md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): line for line in table if line.startswith("|")}
    assert re.search(r"\d", rows["tiny"].split("|")[2])
    assert f"failed: train-{bad}" in rows["gone"]
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"loss"' in line]
    assert steps == list(range(1, STEPS + 1)), "each step once, whatever died"
    assert len(re.findall(r"^== start", (tmp_path / "OUT" / "steps" / f"train-{good}.log").read_text(), re.M)) == 2
