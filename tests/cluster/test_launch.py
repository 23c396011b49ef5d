"""What a launch would be: ranks, devices, commands and variables, as plain values."""

import base64
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmkit.cluster.hosts import Host
from slmkit.cluster.launch import (
    LaunchRequest,
    SlurmOptions,
    is_secret,
    masked,
    pdsh_value,
    plan_hosts,
    plan_lines,
    plan_local,
    plan_slurm,
    travelling,
)
from slmkit.errors import UserError

JOB = LaunchRequest(config="run.yaml")
HOSTS = (Host(name="a", slots=2), Host(name="b", slots=4))


def job(**change: object) -> LaunchRequest:
    return LaunchRequest(**{"config": "run.yaml", **change})  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_every_rank_is_on_one_machine(slots: list[int]) -> None:
    hosts = [Host(name=f"n{i}", slots=count) for i, count in enumerate(slots)]
    plan = plan_hosts(JOB, hosts, "hosts", batch=(sum(slots), 1), env={})
    assert [rank for machine in plan.machines for rank in machine.ranks] == list(range(sum(slots)))
    assert [len(machine.devices) for machine in plan.machines] == slots


def test_a_fit_is_started_like_the_training() -> None:
    train, measure = (plan_local(job(processes=2, fit=is_fit), (8, 1), {}).command for is_fit in (False, True))
    assert measure == (*train, "--fit")


def test_this_machine_alone() -> None:
    plan = plan_local(job(processes=4, overrides=("steps=3",)), (8, 2), {"NCCL_DEBUG": "INFO", "HOME": "/root"})
    command = plan.command_at(4321)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert shlex.join(command[3:]) == (
        "--log_level critical --num_gpus 4 --master_port 4321 --module slmkit train --config run.yaml steps=3"
    )
    shown = plan_lines(plan)
    assert shown[:5] == [
        "4 processes on this machine alone",
        "  localhost  ranks 0-3, devices 0-3",
        "master: 127.0.0.1, port a free one on this machine, found at the start",
        "batch: 8 rows = 4 processes x 2 rows x 1 micro-batches",
        "variables that travel:",
    ]
    assert shown[5] == "  NCCL_DEBUG=INFO"


def test_the_launcher_is_quiet_unless_asked() -> None:
    """Its errors too: it calls a stop with a checkpoint one."""
    for is_verbose, level in ((False, "critical"), (True, "info")):
        for plan in (
            plan_local(job(verbose=is_verbose), (1, 1), {}),
            plan_hosts(job(verbose=is_verbose), HOSTS, "hosts", batch=(6, 1), env={}),
        ):
            assert plan.command[3:5] == ("--log_level", level)
            assert (plan.command[-1] == "--verbose") == is_verbose


def test_devices_that_are_visible_are_kept_to() -> None:
    plan = plan_local(job(processes=2, master_port=99), (2, 1), {"CUDA_VISIBLE_DEVICES": "5,3,7"})
    assert plan.machines[0].devices == (5, 3)
    assert "localhost:5,3" in plan.command
    assert "--num_gpus" not in plan.command
    assert "  localhost  ranks 0-1, devices 5,3" in plan_lines(plan)


@pytest.mark.parametrize("visible", ["0", "GPU-12ab,GPU-34cd"])
def test_too_few_or_unnumbered_devices_are_refused(visible: str) -> None:
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES does not name a device for every process"):
        plan_local(job(processes=2), (2, 1), {"CUDA_VISIBLE_DEVICES": visible})


def test_several_machines_need_a_hostfile() -> None:
    with pytest.raises(UserError, match="--nodes needs a hostfile"):
        plan_local(job(nodes=2), (2, 1), {})


def test_the_machines_of_a_hostfile() -> None:
    plan = plan_hosts(JOB, HOSTS, "hosts", batch=(12, 1), env={})
    assert plan_lines(plan)[:5] == [
        "6 processes on the machines of hosts, over ssh",
        "  a  ranks 0-1, devices 0-1",
        "  b  ranks 2-5, devices 0-3",
        "master: a, port a free one on a, found at the start",
        "batch: 12 rows = 6 processes x 1 rows x 2 micro-batches",
    ]
    # One machine of a hostfile is another machine; DeepSpeed would take it for this one.
    one = plan_hosts(job(nodes=1, processes=1, master_addr="10.0.0.1"), HOSTS, "hosts", batch=(1, 1), env={})
    assert [machine.name for machine in one.machines] == ["a"]
    words = shlex.join(one.command_at(7))
    assert "--hostfile hosts --force_multi --no_ssh_check --num_nodes 1 --num_gpus 1" in words
    assert "--master_addr 10.0.0.1 --master_port 7" in words


def test_more_machines_or_processes_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"hosts names fewer machines\n.*--nodes 3\n.*1 to 2"):
        plan_hosts(job(nodes=3), HOSTS, "hosts", batch=(6, 1), env={})
    with pytest.raises(UserError, match=r"hosts has fewer slots than processes on a\n"):
        plan_hosts(job(processes=3), HOSTS, "hosts", batch=(6, 1), env={})


def test_an_uneven_batch_is_refused_whatever_the_way() -> None:
    numbers = "micro_rows 2, world {}, global_rows 6"
    with pytest.raises(UserError, match=numbers.format(2)):
        plan_local(job(processes=2), (6, 2), {})
    with pytest.raises(UserError, match=numbers.format(6)):
        plan_hosts(JOB, HOSTS, "hosts", batch=(6, 2), env={})
    with pytest.raises(UserError, match=numbers.format(8)):
        plan_slurm(job(nodes=2, processes=4), SlurmOptions(), (6, 2), {})


def test_a_directory_that_a_shell_would_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "my runs"
    place.mkdir()
    monkeypatch.chdir(place)
    with pytest.raises(UserError, match=r"cannot pass this path on to other machines\n.*my runs"):
        plan_hosts(JOB, HOSTS, "hosts", batch=(6, 1), env={})


def test_a_slurm_job() -> None:
    options = SlurmOptions(time="1:00:00", partition="gpu", more=("--account=me",))
    plan = plan_slurm(job(nodes=2, processes=4, overrides=("steps=3",)), options, (8, 1), {})
    words = list(plan.command)
    assert words[:7] == [
        "sbatch",
        *("--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--time=1:00:00", "--partition=gpu"),
        "--account=me",
    ]
    assert words[7].endswith("launch/train.sbatch")
    assert words[8:] == ["--config", "run.yaml", "steps=3"]
    assert plan_lines(plan)[:4] == [
        "8 processes on the nodes of a Slurm job",
        "  node 0 of the job  ranks 0-3, devices 0-3",
        "  node 1 of the job  ranks 4-7, devices 0-3",
        "master: the job's first node, port derived from the job id",
    ]
    without = plan_slurm(JOB, SlurmOptions(gpus=0), (8, 1), {})
    assert not [word for word in without.command if "gpu" in word]
    assert "  node 0 of the job  ranks 0, no devices" in plan_lines(without)


def test_an_sbatch_script_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no sbatch script"):
        plan_slurm(JOB, SlurmOptions(script=str(tmp_path / "x")), (8, 1), {})


def test_the_variables_that_travel() -> None:
    names = ["PYTHONPATH", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "NCCL_IB_HCA", "SLMKIT_X", "HF_HOME", "PATH"]
    names += ["DS_BUILD_OPS", "TORCHINDUCTOR_CACHE_DIR", "TRANSFORMERS_OFFLINE", "TRITON_CACHE_DIR", "CUDA_HOME"]
    staying = [
        "HOME",
        "CUDA_VISIBLE_DEVICES",
        "PATHOLOGY",
        "DS_ENV_FILE",
        "SSH_AUTH_SOCK",
        "RANK",
        "TORCHELASTIC_RUN_ID",
    ]
    assert sorted(names) == list(travelling(dict.fromkeys(names + staying, "1")))
    with pytest.raises(UserError, match="HF_HOME holds a line break"):
        travelling({"HF_HOME": "a\nb"})


SECRETS = [
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "SLMKIT_API_KEY", "NCCL_SECRET", "AWS_SECRET_ACCESS_KEY", "UCX_PASSWORD"),
    *("WANDB_API_KEY", "SLMKIT_PASSWORD_FILE", "SLMKIT_TOKENS", "HF_SECRETS", "DS_TOKEN", "TORCH_TOKEN", "GLOO_AUTH"),
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_never_travels_and_is_never_shown(name: str, tmp_path: Path) -> None:
    env = {name: "abc123", "NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    assert travelling(env) == {"NCCL_DEBUG": "INFO", "TOKENIZERS_PARALLELISM": "false"}
    for plan in (plan_local(JOB, (8, 1), env), plan_slurm(JOB, SlurmOptions(), (8, 1), env)):
        assert "abc123" not in "\n".join(plan_lines(plan))
    with pytest.raises(UserError, match="a secret would stand in a command line") as caught:
        plan_slurm(JOB, SlurmOptions(more=(f"--export=ALL,{name}=abc123",)), (8, 1), env)
    assert "abc123" not in str(caught.value)
    plan_slurm(JOB, SlurmOptions(more=(f"--export=PATH,{name}",)), (8, 1), env)  # its name alone is no secret


def test_what_is_shown_of_a_command_has_no_passwords() -> None:
    word = "data.corpus=https://me:abc123@host/corpus"
    assert masked(f"train {word} steps=3 MY_TOKEN=abc MONKEYS=3") == (
        "train data.corpus=https://***@host/corpus steps=3 MY_TOKEN=*** MONKEYS=***"
    )
    assert masked("columns.key=utt") == "columns.key=utt"
    plan = plan_local(job(overrides=(word,)), (8, 1), {})
    assert "abc123" not in "\n".join(plan_lines(plan))
    assert any("abc123" in part for part in plan.command)  # what runs is what was asked for


def test_other_variables_are_no_secrets() -> None:
    for name in (
        "TOKENIZERS_PARALLELISM",
        "KEYBOARD",
        "PATH",
        "PYTHONPATH",
        "SLMKIT_LAUNCH_ID",
        "AUTHOR",
        "NCCL_IB_HCA",
    ):
        assert not is_secret(name), name


SHELL_TEXT = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20)


@settings(deadline=None)
@given(SHELL_TEXT.filter(lambda text: text == text.strip()))
def test_a_variable_arrives_as_it_is(value: str) -> None:
    """Through DeepSpeed's own export and a shell; pdsh halves the percent signs."""
    from deepspeed.launcher.multinode_runner import MultiNodeRunner

    class Runner(MultiNodeRunner):
        def __init__(self) -> None:
            self.exports: dict[str, str] = {}

        def backend_exists(self) -> bool:
            return True

        def get_cmd(self, environment: object, active_resources: object) -> None:
            return None

    runner = Runner()
    runner.add_export("X", pdsh_value(value))
    assert arrived(f'export X={runner.exports["X"]}; printf %%s "$X"') == value


@settings(deadline=None)
@given(SHELL_TEXT)
def test_an_override_arrives_as_it_is(value: str) -> None:
    """Through DeepSpeed's own quoting for pdsh and a shell."""
    from argparse import Namespace

    from deepspeed.launcher.multinode_runner import PDSHRunner

    words = plan_hosts(job(overrides=(f"base={value}",)), HOSTS, "hosts", batch=(6, 1), env={}).command
    runner = PDSHRunner(Namespace(user_args=[words[-1]], user_script="x"), world_info({"a": [0]}))
    assert arrived(f"printf %%s {runner.user_arguments[0]}") == f"base={value}"


def arrived(pdsh_command: str) -> str:
    done = subprocess.run(["bash", "-c", pdsh_command.replace("%%", "%")], capture_output=True, text=True, check=True)
    return done.stdout


def world_info(machines: dict[str, Sequence[int]]) -> str:
    return base64.urlsafe_b64encode(json.dumps(machines).encode()).decode()
