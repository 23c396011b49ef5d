"""`slmkit doctor` as users start it."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from forked import run
from synthetic import WORDS, write_corpus
from train.ranks import ROOT, finish_ranks, free_port, start_ranks

from slmkit.cli.doctor import as_text
from slmkit.cli.main import main
from slmkit.model.init_base import init_base
from slmkit.train import doctor
from slmkit.train.doctor import CheckResult
from slmkit.world import World

CHECKS = ("versions", "accelerator", "run directory", "all-reduce", "gradient parity")
DATA = ("batch", "corpus", "vocabulary", "model", "checkpoint")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with run.yaml and all it names."""
    place = tmp_path_factory.mktemp("doctor_command")
    write_corpus(place / "corpus", 20, frames=(4, 12))
    init_base(WORDS, place / "base", hidden_size=32, num_layers=1, vocab_size=280)
    config = {
        "run_dir": str(place / "run"),
        "base": str(place / "base"),
        "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
        "data": {"corpus": str(place / "corpus")},
        "steps": 3,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    return place


def outside(**variables: str) -> dict[str, str]:
    """The environment with no rank variables but the given ones."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("SLURM_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}
    return env | variables


def results(shown: str) -> dict[str, str]:
    """Check -> status."""
    found = [
        line.split(":")[0].split(None, 1) for line in shown.splitlines() if line.startswith(("ok ", "warn", "FAIL"))
    ]
    return {name: status for status, name in found}


def test_a_healthy_machine_alone(place: Path) -> None:
    done = run(["-m", "slmkit", "doctor", "--config", str(place / "run.yaml")], env=outside())
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(results(done.stdout)) == {*CHECKS, *DATA}
    assert "FAIL" not in done.stdout
    assert not (place / "run").exists()


@pytest.mark.full
def test_two_processes_under_the_launcher(place: Path) -> None:
    """One line per check, from the first process only."""
    words = ["deepspeed", "--num_gpus", "2", "--master_port", str(free_port()), "--module", "slmkit", "doctor"]
    done = subprocess.run([*words, "--run-dir", str(place)], env=outside(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(results(done.stdout)) == set(CHECKS)
    assert done.stdout.count("gradient parity: ") == 1
    assert "2 processes" in done.stdout


def test_a_batch_that_two_processes_cannot_share_fails(place: Path) -> None:
    command = ["-m", "slmkit", "doctor", "--config", str(place / "run.yaml"), "--set", "global_rows=3"]
    (code, shown, _), (_, other, _) = finish_ranks(start_ranks(2, command))
    assert code == 2
    assert results(shown)["batch"] == "FAIL"
    assert "        got:      micro_rows 1, world 2, global_rows 3" in shown
    assert results(shown)["gradient parity"] == "ok"
    assert results(other) == {}


def test_a_process_that_never_comes_is_not_waited_for_for_ever() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = run(["-m", "slmkit", "doctor", "--limit-sec", "3"], env=outside(**alone))
    assert done.returncode == 2
    assert "not done within 3 s; rank 0 of 2 has done the checks: none" in done.stderr


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warn", 0), ("FAIL", 2)])
def test_the_exit_code_follows_from_the_worst_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Any, code: int
) -> None:
    def examine(*_: Any, **__: Any) -> Iterator[CheckResult]:
        yield CheckResult(name="disk", status="ok", what="fast")
        yield CheckResult(name="codec", status=status, what="another", got="1", expected="2", next_step="fix it")

    monkeypatch.setattr(doctor, "examine", examine)
    assert main(["doctor"]) == code
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["ok    disk: fast", f"{status:4}  codec: another"]
    assert [line.split() for line in shown[2:]] == [["got:", "1"], ["expected:", "2"], ["next:", "fix", "it"]]
    assert main(["doctor", "--json"]) == code
    found = json.loads(capsys.readouterr().out)
    fast, other = found["checks"]
    assert (found["rank"], found["ok"]) == (0, code == 0)
    assert (fast["name"], fast["status"], other["got"], other["status"]) == ("disk", "ok", "1", status)


def test_lines_fit_80_columns() -> None:
    result = CheckResult(name="disk", status="FAIL", what="slow " * 30, got="word " * 30, next_step="fix it " * 20)
    shown = as_text(result, World(rank=12, size=16)).splitlines()
    assert len(shown) > 8
    assert max(map(len, shown)) <= 80
    assert " ".join(" ".join(shown).split()).count("slow") == 30


def test_a_version_outside_the_range_is_shown_with_its_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: ["deepspeed<=0.19.3,>=0.1"])
    monkeypatch.setattr(doctor, "examine", lambda *_, **__: iter(doctor.check_versions()))
    assert main(["doctor"]) == 2
    shown = capsys.readouterr().out
    assert "FAIL  versions: deepspeed is outside the tested range" in shown
    assert f"got:      {importlib.metadata.version('deepspeed')}" in shown
    assert "expected: deepspeed >=0.1,<=0.19.3" in shown


def test_a_config_that_is_not_there_is_a_user_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", "/nowhere.yaml"]) == 2
    assert "there is no such config" in capsys.readouterr().err
