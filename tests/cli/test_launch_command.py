"""`slmkit launch` as users start it: what it prints, what it refuses, and what a signal to it does."""

import os
import signal
import subprocess

import pytest
from launch.machines import processes_with, wait_for
from launch.runs import environment, launch_words, make_place, num_logged, words
from train.place import Place
from train.ranks import ROOT

from slmkit.cli.main import main

MINUTES = "sbatch --nodes=2 --ntasks-per-node=2 --gpus-per-node=1 --time=30"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("launch_command"))


def hostfile(place: Place, text: str) -> str:
    path = place.directory / "hosts"
    path.write_text(text)
    return str(path)


def test_a_dry_run_says_what_would_run_where_and_starts_nothing(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine without pdsh and Slurm, for machines that are not there."""
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    options = ["launch", "--dry-run", *words(place, "dry")]
    assert main([*options, "--processes", "2", "--master-port", "29501"]) == 0
    shown = capsys.readouterr().out
    assert "2 processes on this machine alone\n  localhost  ranks 0-1, devices 0-1\n" in shown
    assert "master: 127.0.0.1, port 29501\nbatch: 4 rows = 2 processes x 1 rows x 2 micro-batches\n" in shown
    assert "  NCCL_SOCKET_IFNAME=ib0\n" in shown
    assert (
        "deepspeed.launcher.runner --log_level critical --num_gpus 2 --master_port 29501 --module slmkit train --config"
        in shown
    )
    assert "-m slmkit --local_rank=N train --config" in shown

    assert main([*options, "--hostfile", hostfile(place, "n1.invalid slots=1\nn2.invalid slots=3\n")]) == 0
    shown = capsys.readouterr().out
    assert "  n1.invalid  ranks 0, devices 0\n  n2.invalid  ranks 1-3, devices 0-2\n" in shown
    assert "master: n1.invalid, port a free one on n1.invalid, found at the start\n" in shown

    assert main([*options, "--slurm", "--nodes", "2", "--processes", "2", "--gpus", "1", "--time", "30"]) == 0
    shown = capsys.readouterr().out
    assert "  node 1 of the job  ranks 2-3, devices 0\n" in shown
    assert f"{MINUTES} {ROOT}/launch/train.sbatch --config" in shown
    assert not (place.directory / "dry").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hostfile", "/nowhere/hosts"], "cannot read the hostfile /nowhere/hosts"),
        (["--slurm", "--hostfile", "hosts"], "--slurm takes its machines from the job"),
        (["--processes", "3"], "micro_rows 1, world 3, global_rows 4"),
        (["--nodes", "2"], "--nodes needs a hostfile"),
        (["--set", "colour=red"], "colour: unknown key"),
        (["--set", "deepspeed=zero2_bf61", "--dry-run"], "no file of this name"),
        (["--set", "deepspeed=zero2_bf61", "--dry-run", "--slurm"], "no file of this name"),
        (["--set", "deepspeed=zero2_bf61", "--dry-run", "--hostfile", "HOSTS"], "no file of this name"),
        (["--set", "base=/nowhere/base", "--dry-run"], "base: there is no such file or directory"),
        (["--set", "base=/nowhere/base", "--slurm"], "base: there is no such file or directory"),
        (["--set", "model.head=lnear", "--slurm", "--dry-run"], "there is no such kind of head"),
    ],
)
def test_what_cannot_be_started_is_a_user_error(
    place: Place, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    options = [hostfile(place, "n1.invalid slots=1\n") if word == "HOSTS" else word for word in options]
    assert main(["launch", *words(place, "never"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (place.directory / "never").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "there is no pdsh on this machine"), (["--slurm"], "there is no sbatch on this machine")],
)
def test_a_missing_program_is_a_user_error(
    place: Place, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    given = options or ["--hostfile", hostfile(place, "n1.invalid slots=1\n")]
    assert main(["launch", *words(place, "never"), *given]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--processes 0", "--nodes 0", "--master-port 70000"])
def test_counts_start_at_one_and_ports_end(place: Place, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["launch", *words(place, "never"), *option.split()])
    assert f"argument {option.split()[0]}" in capsys.readouterr().err


def test_the_script_passes_its_variables_on(place: Place) -> None:
    """A hostfile that is not there must not become a run on this machine."""
    env = environment(
        CONFIG=str(place.directory / "run.yaml"), HOSTFILE="/nowhere/hosts", PROCESSES="2", MASTER_PORT="9"
    )
    script = ["bash", str(ROOT / "launch" / "train.sh")]
    done = subprocess.run(script, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot read the hostfile /nowhere/hosts" in done.stderr
    del env["HOSTFILE"]
    done = subprocess.run([*script, "--dry-run"], env=env, capture_output=True, text=True, check=False)
    assert "--num_gpus 2 --master_port 9 " in done.stdout, done.stderr


@pytest.mark.full
def test_a_signal_to_the_launcher_becomes_a_checkpoint_and_the_same_command_continues(place: Place) -> None:
    command = launch_words(*words(place, "stopped"), "--processes", "2")
    process = subprocess.Popen(command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: num_logged(place, "stopped") >= 3, 120, lambda: f"no training: {process.poll()}")
    os.kill(process.pid, signal.SIGINT)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 75, told
    assert "SIGINT: asking every process for a checkpoint" in told
    assert "[ERROR]" not in told
    assert "[INFO]" not in told
    assert processes_with(f"run_dir={place.directory / 'stopped'}") == []
    stopped_at = num_logged(place, "stopped")
    assert 3 <= stopped_at < 40
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert num_logged(place, "stopped") == 40


def test_a_signal_before_training_ends_the_launch(place: Place) -> None:
    run_dir = f"run_dir={place.directory / 'early'}"
    command = launch_words(*words(place, "early"), "--processes", "2")
    process = subprocess.Popen(command, env=environment(), text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(processes_with(run_dir)) > 1, 60, lambda: "no launcher")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "training had not started; ending" in told
    assert processes_with(run_dir) == []
