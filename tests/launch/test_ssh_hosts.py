"""`slmkit launch --hostfile` with real sshd, pdsh and DeepSpeed's launcher."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from launch.machines import processes_with, wait_for
from launch.runs import environment, launch, launch_words, losses, make_place, num_logged, words
from launch.ssh import SshHosts, ssh_hosts
from train.place import Place

from slmkit.cluster import launcher
from slmkit.cluster.hosts import read_hostfile
from slmkit.cluster.launch import LaunchRequest, plan_hosts
from slmkit.stopping import STOPPED

pytestmark = pytest.mark.full


@pytest.fixture(scope="module")
def hosts() -> Iterator[SshHosts]:
    with ssh_hosts() as running:
        yield running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("ssh_hosts"))


def test_two_hosts_train_as_one_machine_does(hosts: SshHosts, place: Place) -> None:
    """A path with a space and a dollar sign arrives as it is, and a variable with quotes does no harm."""
    strange = place.directory / "two hosts $HOME 100%n"
    marks = {"SLMKIT_TEST": 'a "quoted" $HOME `x` 5%n'}
    options = [*words(place, "two", run_dir=strange), "--hostfile", hosts.hostfile(*hosts.up)]
    together = launch(*options, **hosts.variables, **marks)
    assert together.returncode == 0, together.stdout + together.stderr
    assert f"{hosts.up[0]}: " in together.stdout
    assert f"{hosts.up[1]}: " in together.stdout
    alone = launch(*words(place, "reference"), "--processes", "2")
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert losses(place, strange.name) == losses(place, "reference")


def test_hosts_that_are_down_are_all_named_before_anything_starts(hosts: SshHosts, place: Place) -> None:
    """One refuses, one has no address, one accepts and then says nothing."""
    with socket.create_server(("127.0.0.3", 0)) as silent:
        mute = f"{hosts.down}-mute"
        with open(hosts.directory / "client", "a") as file:
            file.write(f"Host {mute}\n    HostName 127.0.0.3\n    Port {silent.getsockname()[1]}\n")
        hostfile = hosts.hostfile(*hosts.up, hosts.down, "nowhere.invalid", mute)
        began = time.monotonic()
        done = launch(*words(place, "down", global_rows=5), "--hostfile", hostfile, **hosts.variables)
    assert done.returncode == 2
    assert time.monotonic() - began < 60
    assert f"cannot reach {hosts.down}, nowhere.invalid, {mute}" in done.stderr
    assert f"{hosts.down}: ssh: connect to host 127.0.0.3" in done.stderr
    assert "nowhere.invalid: ssh: Could not resolve hostname" in done.stderr
    assert not (place.directory / "down").exists()


def test_a_host_without_the_files_is_named(hosts: SshHosts, place: Place) -> None:
    missing = place.directory / "no_base"
    options = [*words(place, "nowhere", base=missing), "--hostfile", hosts.hostfile(*hosts.up)]
    done = launch(*options, **hosts.variables)
    assert done.returncode == 2
    assert f"cannot train on {hosts.up[0]}, {hosts.up[1]}" in done.stderr
    assert f"{hosts.up[1]}: cannot read {missing}" in done.stderr


def test_a_host_lost_while_starting_ends_everything_within_a_minute(
    hosts: SshHosts, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    """It answered when it was looked at; now its sshd is gone, and the other host's ranks wait for it."""
    path = place.directory / "run.yaml"
    job = LaunchRequest(config=str(path), overrides=(f"run_dir={place.directory / 'lost'}",))
    hostfile = hosts.hostfile(hosts.up[0], hosts.down)
    env = environment(**hosts.variables)
    plan = plan_hosts(job, read_hostfile(hostfile), hostfile, batch=(4, 1), env=env)
    began = time.monotonic()
    assert launcher.start(plan, None, env) == launcher.CRASH
    assert time.monotonic() - began < 60
    assert f"lost {hosts.down}: ssh: connect to host 127.0.0.3" in caplog.text
    while processes_with(str(place.directory / "lost")):  # ended by signals, which take a moment
        assert time.monotonic() - began < 60
        time.sleep(0.1)


def test_a_signal_to_the_launcher_becomes_a_checkpoint(hosts: SshHosts, place: Place) -> None:
    options = [*words(place, "stopped", steps=2000), "--hostfile", hosts.hostfile(*hosts.up)]
    process = subprocess.Popen(
        launch_words(*options), env=environment(**hosts.variables), text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: num_logged(place, "stopped") >= 3, 120, lambda: "training did not start")
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=100)
    assert "SIGINT: asking every process for a checkpoint" in told
    assert process.returncode == STOPPED, told
    assert list((place.directory / "stopped" / "checkpoints").glob("step-*/complete.json"))
    wait_for(lambda: processes_with(str(place.directory / "stopped")) == [], 10, lambda: "processes are left")


def test_the_second_signal_ends_everything_at_once(hosts: SshHosts, place: Place) -> None:
    options = [*words(place, "ended", steps=2000), "--hostfile", hosts.hostfile(hosts.up[1])]
    process = subprocess.Popen(
        launch_words(*options), env=environment(**hosts.variables), text=True, stderr=subprocess.PIPE
    )
    wait_for(lambda: Path(place.directory / "ended" / "metrics.jsonl").exists(), 120, lambda: "no start")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode in (128 + signal.SIGTERM, STOPPED)
    assert processes_with(str(place.directory / "ended")) == []
