"""What of the environment reaches DeepSpeed's launcher, which writes variables into command lines."""

import os
from pathlib import Path

import pytest

from slmkit.cluster.hosts import Host
from slmkit.cluster.launch import LaunchRequest, plan_hosts
from slmkit.cluster.launcher import _Launch


def test_no_secret_reaches_a_command_line_through_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / ".deepspeed_env").write_text("MY_TOKEN=abc123\nPLAIN=1\n")
    env = {"MLFLOW_TRACKING_PASSWORD": "abc123", "HF_TOKEN": "abc123", "NCCL_DEBUG": "INFO", "PATH": os.environ["PATH"]}
    plan = plan_hosts(LaunchRequest(config="run.yaml"), [Host(name="node1", slots=1)], "hosts", batch=(1, 1), env=env)
    child = _Launch(plan, 29500, env)._child_env(tmp_path)
    written = Path(child["DS_ENV_FILE"]).read_text()
    assert "abc123" not in written
    assert "PLAIN=1\n" in written
    assert "NCCL_DEBUG=INFO\n" in written
    assert "MLFLOW_TRACKING_PASSWORD" not in child
    assert "MY_TOKEN of .deepspeed_env stays here" in caplog.text
    assert "abc123" not in caplog.text
