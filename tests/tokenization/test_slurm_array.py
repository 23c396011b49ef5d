"""`slmkit tokenize submit` and its scripts on a real Slurm: tasks that are killed, requeued and told to stop on the way
leave the bytes of a run in one process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from launch.machines import processes_with, wait_for
from launch.runs import environment
from launch.slurm import Slurm, slurm
from train.ranks import ROOT

from slmkit.cli.main import main
from slmkit.data.index import Corpus

pytestmark = pytest.mark.full
SAMPLES = ROOT / "tokenize_jobs" / "sample_corpus"  # 32 sentences
ARRAY, FINALIZE = (ROOT / "tokenize_jobs" / name for name in ("array.sbatch", "finalize.sbatch"))
ITEMS, SHARD_SAMPLES, TASKS = 960, 2, 8
SHARDS = ITEMS // SHARD_SAMPLES
SOME = 3  # shards of a task that are written before something happens to it


class Work(NamedTuple):
    """A corpus to tokenize, large enough that a task takes some seconds, and what becomes of it in one process."""

    directory: Path
    reference: dict[str, bytes]

    def words(self, out: str) -> list[str]:
        paths = [str(self.directory / name) for name in ("items.jsonl", "codec", out)]
        recipe = ["--config", str(ROOT / "tokenize_jobs/manifest.yaml"), f"shard_samples={SHARD_SAMPLES}"]
        return [*paths, *recipe]

    def num_done(self, out: str, task: int) -> int:
        """Shards of a task of TASKS that are there."""
        paths = (self.directory / out).glob("manifest-*.index.json")
        return sum(int(path.name[9:15]) % TASKS == task for path in paths)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    directory = tmp_path_factory.mktemp("slurm_array")
    files = sorted(SAMPLES.rglob("*.flac"))
    items = [{"path": str(files[i % len(files)]), "text": f"Words {i}.", "key": f"k{i:05d}"} for i in range(ITEMS)]
    (directory / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items))
    assert main(["codec", "fit", str(SAMPLES), str(directory / "codec")]) == 0
    work = Work(directory, {})
    assert main(["tokenize", "run", *work.words("reference"), "--num-workers", "0"]) == 0
    work.reference.update(contents(directory / "reference"))
    return work


def contents(out: Path) -> dict[str, bytes]:
    """File name -> bytes of tars, indexes and ledgers, without the files that name times and commits."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".tar", ".jsonl")} | {
        path.name: path.read_bytes() for path in out.glob("*.index.json")
    }


def submit(cluster: Slurm, *words: str) -> subprocess.CompletedProcess[str]:
    """`slmkit tokenize submit` to its end."""
    command = [sys.executable, "-m", "slmkit", "tokenize", "submit", *words]
    return subprocess.run(command, env=cluster.env, capture_output=True, text=True, check=False, cwd=cluster.directory)


def kill(cluster: Slurm, array: str, task: int) -> None:
    """kill -9 of the process that encodes."""
    found = [pid for pid in processes_with(f"--task\0{task}\0--num-tasks\0{TASKS}") if is_python(pid)]
    assert found, cluster.log(f"{array}_{task}")
    os.kill(min(found), signal.SIGKILL)  # another may be just starting a program


def tell(cluster: Slurm, array: str, task: int) -> None:
    """What Slurm does two minutes before the time limit.

    To the step: given the task, scancel tries again for as long as other tasks wait, and signals this one each time.
    """
    cluster.call("scancel", "--signal=USR1", f"{array}_{task}.0")


def requeue(cluster: Slurm, array: str, task: int) -> None:
    """What happens to a preempted task."""
    cluster.call("scontrol", "requeue", f"{array}_{task}")


def is_python(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"python" in file.read().split(b"\0")[0]


EVENTS = {0: kill, 1: kill, 2: tell, 3: requeue, 5: kill}
TOLD = {
    kill: "crash 1 of at most 3",
    tell: "told to stop, finished shards stay: requeueing",
    requeue: "stopped by Slurm",
}


def test_a_disturbed_array_leaves_the_bytes_of_one_process(cluster: Slurm, work: Work) -> None:
    out = work.directory / "array"
    options = ["--tasks", str(TASKS), "--limit", "4", "--cpus", "2", "--time", "10"]
    done = submit(cluster, "--run", *work.words("array"), *options, f"--sbatch={cluster.array_output}")
    assert done.returncode == 0, done.stdout + done.stderr
    ids = re.match(rf"submitted array (\d+) of {TASKS} tasks, then job (\d+) to finalize the corpus\n", done.stdout)
    assert ids is not None, done.stdout
    assert done.stdout.endswith(f"next: slmkit tokenize status {out}\n")
    array, finalize = ids.groups()

    done_before, waiting = {}, dict(EVENTS)

    def disturb() -> bool:
        for task in [task for task in waiting if work.num_done("array", task) >= SOME]:
            done_before[task] = work.num_done("array", task)
            waiting.pop(task)(cluster, array, task)
        return not waiting

    wait_for(disturb, 120, lambda: "".join(cluster.log(f"{array}_{task}") for task in range(TASKS)))
    assert max(done_before.values()) < SHARDS // TASKS, "the tasks were done before anything happened to them"
    assert cluster.finish(finalize) == "COMPLETED", cluster.log(f"{array}_0")

    for task in range(TASKS):
        log = cluster.log(f"{array}_{task}")
        assert f"[task {array}_{task}, start 1" in log
        assert f"task {task} of {TASKS} on {cluster.names[0][:-1]}" in log
        assert "cpu, 1 threads, 1 decoding" in log
        starts = 2 if task in EVENTS else 1
        assert re.search(rf"\[task {array}_{task}, start {starts}, [0-9:]+\] the task's shards are done", log), log
        assert task not in EVENTS or TOLD[EVENTS[task]] in log, log
    assert contents(out) == work.reference
    assert len(Corpus.open(out)) == ITEMS
    assert not list(cluster.directory.glob(".slmkit-job-*"))


def test_a_task_alone_does_its_own_shards_again(cluster: Slurm, work: Work) -> None:
    """Of an array of 8; Slurm would count one."""
    out = work.directory / "array"
    for shard in (3, 11):
        (out / f"manifest-{shard:06d}.index.json").unlink()
    array = cluster.submit("--array=3", "--", *work.words("array"), script=ARRAY, NUM_TASKS=str(TASKS))
    assert cluster.finish(f"{array}_3") == "COMPLETED", cluster.log(f"{array}_3")
    assert f"task 3 of {TASKS} on" in cluster.log(f"{array}_3")
    assert contents(out) == work.reference


def test_a_cancelled_task_ends_and_what_is_done_stays(cluster: Slurm, work: Work) -> None:
    assert main(["tokenize", "plan", *work.words("cancelled")]) == 0
    array = cluster.submit("--array=0", "--", *work.words("cancelled"), script=ARRAY, NUM_TASKS=str(TASKS))
    task = f"{array}_0"
    wait_for(lambda: work.num_done("cancelled", 0) >= SOME, 120, lambda: cluster.log(task))
    cluster.call("scancel", task)
    assert cluster.finish(task) == "CANCELLED", cluster.log(task)
    wait_for(lambda: "stopped by Slurm, exit code 75" in cluster.log(task), 10, lambda: cluster.log(task))
    assert SOME <= work.num_done("cancelled", 0) < SHARDS // TASKS


def test_an_error_to_mend_ends_the_task_and_the_job_that_waits_for_it(cluster: Slurm, work: Work) -> None:
    array = cluster.submit("--array=9", "--", *work.words("array"), script=ARRAY, NUM_TASKS=str(TASKS))
    finalize = cluster.submit(f"--dependency=afterok:{array}", "--", str(work.directory / "array"), script=FINALIZE)
    assert cluster.finish(f"{array}_9") == "FAILED"
    assert "got 9 of 8, expected 0 <= task < num_tasks" in cluster.log(f"{array}_9")
    assert "tokenizing refused to run (exit code 2, see above): not requeued" in cluster.log(f"{array}_9")
    assert cluster.finish(finalize) == "CANCELLED"


def test_crashes_are_counted_and_end(cluster: Slurm, work: Work) -> None:
    """A Python that cannot start."""
    variables = {"PYTHONHOME": "/nowhere", "MAX_CRASHES": "1"}
    array = cluster.submit("--array=0", "--", *work.words("array"), script=ARRAY, **variables)
    assert cluster.finish(f"{array}_0") == "FAILED"
    told = re.findall(r"crash \d[^:]*: \w+ ?\w*", cluster.log(f"{array}_0"))
    assert told == ["crash 1 of at most 1 (exit code 1): requeueing", "crash 2 in a row (exit code 1): not requeued"]


def test_what_only_an_array_can_do_is_not_done_alone(cluster: Slurm, work: Work) -> None:
    job = cluster.submit("--", *work.words("alone"), script=ARRAY)
    assert cluster.finish(job) == "FAILED"
    assert "submit it with --array=0-N" in cluster.log(job)
    assert not (work.directory / "alone").exists()


def test_a_source_that_is_not_there_is_found_before_anything_is_submitted(cluster: Slurm, work: Work) -> None:
    _, *words = work.words("nothing")
    done = submit(cluster, "--run", str(work.directory / "nowhere.jsonl"), *words)
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr
    assert not cluster.call("squeue", "--noheader").strip()


def test_a_dry_run_plans_and_submits_nothing(work: Work, capsys: pytest.CaptureFixture[str]) -> None:
    """On a machine without Slurm."""
    words = work.words("dry")
    command = [sys.executable, "-m", "slmkit", "tokenize", "submit", *words, "--tasks", "500", "--gpus", "1"]
    env = environment(PATH="/nowhere")
    done = subprocess.run([*command, "--dry-run"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"{SHARDS} tasks, at most 16 at once, each with 4 CPUs and 1 GPU"
    assert f"note: {SHARDS} tasks, not 500: there are no more shards to share" in lines
    asked = f"sbatch --array=0-{SHARDS - 1}%16 --export=ALL,NUM_TASKS={SHARDS} --cpus-per-task=4 --gpus-per-node=1"
    assert lines[-2] == f"  {asked} {ARRAY} {' '.join(words)}"
    out = work.directory / "dry"
    assert lines[-1] == f"  sbatch --dependency=afterok:ID_OF_THE_ARRAY {FINALIZE} {out} --max-failure-share 0.05"
    assert not list(out.glob("*.tar"))

    refused = subprocess.run([*command, "--run"], env=env, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "there is no sbatch on this machine" in refused.stderr
    with pytest.raises(SystemExit, match="2"):
        main(["tokenize", "submit", *words])
    assert "one of the arguments --dry-run --run is required" in capsys.readouterr().err
