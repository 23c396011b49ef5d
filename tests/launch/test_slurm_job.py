"""launch/train.sbatch on a real Slurm of two nodes: it trains, keeps out of other jobs' way, and looks after itself."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator

import pytest
from launch.machines import processes_with, wait_for
from launch.runs import launch, launch_words, losses, make_place, num_logged, words
from launch.slurm import Slurm, slurm
from train.place import Place

pytestmark = pytest.mark.full
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """With a finished run of two processes on one machine."""
    place = make_place(tmp_path_factory.mktemp("slurm_job"))
    done = launch(*words(place, "reference"), "--processes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def wait_for_steps(cluster: Slurm, place: Place, name: str, job: str, count: int) -> None:
    wait_for(lambda: num_logged(place, name) >= count, 120, lambda: f"{cluster.state(job)}: {cluster.log(job)}")


def test_a_job_of_two_nodes_that_slmkit_launch_submits(cluster: Slurm, place: Place) -> None:
    output = f"--sbatch=--output={cluster.directory}/job-%j.log"
    options = [*words(place, "launched"), "--slurm", "--nodes", "2", "--gpus", "0", "--time", "5", output]
    done = subprocess.run(launch_words(*options), env=cluster.env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[-1]
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert f"1 processes on each of {cluster.names[0][:-1]}[1-2], master {cluster.names[0]}" in cluster.log(job)
    assert "step 0 of 40, 2 processes" in cluster.log(job)
    assert losses(place, "launched") == losses(place, "reference")


def test_two_jobs_at_once_on_a_node_do_not_collide(cluster: Slurm, place: Place) -> None:
    """Same node, same moment, two processes each."""
    node = (f"--nodelist={cluster.names[0]}", "--mincpus=2")
    jobs = [cluster.submit(*node, "--", *words(place, f"twin{i}", steps=8), TASKS_PER_NODE="2") for i in (1, 2)]
    assert [cluster.finish(job) for job in jobs] == ["COMPLETED"] * 2, "".join(map(cluster.log, jobs))
    ports = [re.search(r"port (\d+)", cluster.log(job)) for job in jobs]
    assert all(ports)
    assert len({port[1] for port in ports if port}) == 2
    assert losses(place, "twin1") == losses(place, "twin2")
    assert len(losses(place, "twin1")) == 8


def test_a_signalled_job_of_two_nodes_continues_by_itself(cluster: Slurm, place: Place) -> None:
    """The signal of the time limit, a requeue, and the losses of a run that nothing happened to."""
    job = cluster.submit(*TWO_NODES, "--", *words(place, "signalled"))
    wait_for_steps(cluster, place, "signalled", job, 3)
    cluster.call("scancel", "--signal=USR1", job)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    log = cluster.log(job)
    assert f"[job {job}, start 1" in log
    assert "told to stop, a checkpoint is written: requeueing" in log
    assert re.search(rf"\[job {job}, start 2, [0-9:]+\] training is done", log)
    assert "crash" not in log
    assert losses(place, "signalled") == losses(place, "reference")


def test_a_cancelled_job_writes_a_checkpoint_and_ends(cluster: Slurm, place: Place) -> None:
    """What a preempted job gets too: SIGTERM to everything."""
    job = cluster.submit(*TWO_NODES, "--", *words(place, "cancelled"))
    wait_for_steps(cluster, place, "cancelled", job, 3)
    cluster.call("scancel", job)
    assert cluster.finish(job) == "CANCELLED", cluster.log(job)
    wait_for(lambda: "stopped by Slurm, exit code 75" in cluster.log(job), 10, lambda: cluster.log(job))
    (checkpoint,) = (place.directory / "cancelled" / "checkpoints").glob("step-*/complete.json")
    assert int(checkpoint.parent.name.removeprefix("step-")) >= 3


def test_a_killed_rank_is_a_crash_that_is_tried_again(cluster: Slurm, place: Place) -> None:
    run_dir = place.directory / "killed"
    job = cluster.submit(*TWO_NODES, "--", *words(place, "killed", save_every_steps=10))
    wait_for_steps(cluster, place, "killed", job, 12)
    ranks = [pid for pid in processes_with(f"run_dir={run_dir}") if _is_rank(pid)]
    os.kill(ranks[-1], signal.SIGKILL)
    assert cluster.finish(job) == "COMPLETED", cluster.log(job)
    assert "crash 1 of at most 3 (exit code 137): requeueing" in cluster.log(job)
    assert losses(place, "killed") == losses(place, "reference")
    assert not list(cluster.directory.glob(".slmkit-job-*"))


def test_crashes_are_counted_and_end(cluster: Slurm, place: Place) -> None:
    """A Python that cannot start."""
    job = cluster.submit("--", *words(place, "never"), PYTHONHOME="/nowhere", MAX_CRASHES="1")
    assert cluster.finish(job) == "FAILED"
    told = re.findall(r"crash \d[^:]*: \w+ ?\w*", cluster.log(job))
    assert told == ["crash 1 of at most 1 (exit code 1): requeueing", "crash 2 in a row (exit code 1): not requeued"]


def test_a_user_error_is_not_tried_again(cluster: Slurm, place: Place) -> None:
    job = cluster.submit("--", *words(place, "wrong", global_rows=3, micro_rows=2))
    assert cluster.finish(job) == "FAILED"
    assert "training refused to run (exit code 2, see above): not requeued" in cluster.log(job)
    assert "global_rows 3" in cluster.log(job)


def _is_rank(pid: int) -> bool:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return b"python" in file.read().split(b"\0")[0]
