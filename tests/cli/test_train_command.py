"""`slmkit train` as users start it: alone and under the deepspeed launcher, rightly and wrongly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from forked import run
from synthetic import WORDS, codec_spec, write_corpus
from train.ranks import ROOT, finish_ranks, free_port, start_ranks

from slmkit.cli.main import main
from slmkit.infer.engine import Engine
from slmkit.infer.request import Request
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import load
from slmkit.train.metrics import read_metrics


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with run.yaml and all it names."""
    place = tmp_path_factory.mktemp("command")
    write_corpus(place / "corpus", 20, frames=(4, 12))
    init_base([" ".join(WORDS)] * 3, place / "base", hidden_size=32, num_layers=1, vocab_size=280)
    config = {
        "run_dir": str(place / "run"),
        "base": str(place / "base"),
        "deepspeed": str(ROOT / "ds_configs" / "zero2_fp32.json"),
        "data": {"corpus": str(place / "corpus"), "row_tokens": 160, "num_workers": 1},
        "model": {"group": 3},
        "global_rows": 4,
        "steps": 3,
        "log_every_steps": 1,
        "save_every_steps": 2,
    }
    (place / "run.yaml").write_text(yaml.safe_dump(config))
    return place


def environment() -> dict[str, str]:
    """No rank variables, as in a login shell."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    env = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("SLURM_")}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    return env | {"PATH": f"{Path(sys.executable).parent}:{env['PATH']}"}


def launched(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """A command line to its end."""
    return subprocess.run(
        words, env=environment(), cwd=directory, capture_output=True, text=True, timeout=600, check=False
    )


def test_help_lists_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for option in ("run_dir", "optimizer.lr", "data.row_tokens", "model.group", "schedule.kind"):
        assert f"\n  {option} " in shown
    assert "local_rank" not in shown


def test_a_wrong_config_is_reported_once_and_ends_every_process(place: Path) -> None:
    command = ["-m", "slmkit", "--local_rank=0", "train", "--config", str(place / "run.yaml")]
    done = finish_ranks(start_ranks(2, [*command, "optimizer.lr=-1", "--set", "zebra=red"]))
    assert [code for code, _, _ in done] == [2, 2]
    shown = "".join(errors for _, _, errors in done)
    assert shown.count("2 problems") == 1
    assert "zebra: unknown key" in shown
    assert "optimizer.lr: got -1, expected" in shown
    assert "Traceback" not in shown


def test_the_config_is_printed_and_can_be_used_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Overrides may stand before and after other options; the last one counts."""
    words = ["steps=6", "--print-config", "steps=7", "optimizer.lr=1e-3", "--set", "model.group=12", "model.group=6"]
    assert main(["train", *words, "--config", str(place / "run.yaml")]) == 0
    shown = capsys.readouterr().out
    config = yaml.safe_load(shown)
    assert (config["steps"], config["optimizer"]["lr"], config["model"]["group"]) == (7, 1e-3, 6)
    assert (config["seed"], config["data"]["row_tokens"]) == (0, 160)
    (place / "again.yaml").write_text(shown)
    assert main(["train", "--config", str(place / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == shown


def test_a_dry_run_tells_what_the_run_would_be(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--dry-run", "--processes", "4", f"run_dir={place / 'dry'}", "deepspeed=zero2_fp32"]
    assert main(["train", "--config", str(place / "run.yaml"), *words]) == 0
    shown = capsys.readouterr().out
    names = [line.split("  ")[0] for line in shown.splitlines() if not line.startswith(" ")]
    assert names == [
        *("run_dir", "base", "deepspeed", "batch", "model"),
        *("data", "epoch", "steps", "targets", "checkpoints"),
    ]
    assert "4 processes" in shown
    assert [path.name for path in (place / "dry").iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dry-run", "--processes", "3"], "must equal global_rows exactly"),
        (["--dry-run", "--processes", "0"], "must equal global_rows exactly"),
        (["--dry-run", "optimizer.betas=1"], "optimizer.betas: got 1, expected a list of two numbers"),
        (["--dry-run", "deepspeed=zero9"], "no file of this name comes with slmkit"),
        (["--dry-run", "deepspeed=gone.json"], "there is no such DeepSpeed file"),
        (["--dry-run", "--print-config", "steps=x"], "steps: got 'x'"),
        (["--dry-run", "--set", "codec=nowhere", "--set", "speak_every_steps=1"], "nowhere"),
        (["--processes", "2"], "--processes is for --dry-run only"),
        (["--fit", "--dry-run"], "--fit measures"),
    ],
)
def test_a_dry_run_of_what_cannot_be(
    place: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", str(place / "run.yaml"), *words]) == 2
    assert message in capsys.readouterr().err


def test_alone_and_once_more_when_it_is_complete(place: Path) -> None:
    words = ["-m", "slmkit", "train", "--config", "run.yaml"]
    alone = run(words, env=environment(), cwd=place)
    assert alone.returncode == 0, alone.stderr[-4000:]
    assert (place / "run" / "checkpoints" / "step-3" / "complete.json").is_file()
    assert "saved" in alone.stderr
    lines = (place / "run" / "metrics.jsonl").read_text()
    for steps in (3, 2):  # and where fewer are asked for than are done
        again = run([*words, f"steps={steps}"], env=environment(), cwd=place)
        assert again.returncode == 0, again.stderr[-4000:]
        assert f"the run is complete: step 3 of {steps}; raise steps to train longer" in again.stderr
    assert (place / "run" / "metrics.jsonl").read_text() == lines


def test_eight_streams_in_groups_of_three(place: Path, tmp_path: Path) -> None:
    """Trained, exported and heard: a head serves every stream in turn, whatever the size of its codebook."""
    corpus = write_corpus(tmp_path / "corpus", 20, frames=(4, 12), spec=codec_spec((16, 9, 12, 8, 8, 8, 5, 16)))
    options = [f"run_dir={tmp_path / 'run'}", f"data.corpus={corpus.directory}", "steps=4", "optimizer.lr=5e-3"]
    done = run(["-m", "slmkit", "train", "--config", "run.yaml", *options], env=environment(), cwd=place)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert {name for name in lines[0] if name.startswith("loss/head")} == {f"loss/head{i}" for i in (1, 2, 3)}
    assert lines[-1]["loss"] < lines[0]["loss"]
    words = ["-m", "slmkit", "consolidate", str(tmp_path / "run"), str(tmp_path / "model")]
    done = run(words, env=environment(), cwd=place)
    assert done.returncode == 0, done.stderr[-4000:]
    model = load(tmp_path / "model")
    with torch.no_grad():
        model.lm_model.lm_head.weight[model.layout.id_of("<sosp>")] *= 9  # so few steps teach it no text
    (output,) = Engine(model, num_slots=1).generate([Request(prompt=(1, 2, 3), max_sec=0.1)])
    assert output.codes.shape[0] == 8
    assert (model.layout.codebook_sizes > output.codes.T).all()


@pytest.mark.full
def test_under_the_launcher(place: Path) -> None:
    """A run of two processes through launch/train.sh, then again with a shard that has lost its end."""
    script = [str(ROOT / "launch" / "train.sh"), f"run_dir={place / 'two'}"]
    words = ["env", "CONFIG=run.yaml", "PROCESSES=2", *script]
    together = launched(words, place)
    assert together.returncode == 0, together.stderr[-4000:]
    assert "[INFO] [runner.py" not in together.stdout + together.stderr
    assert [line["step"] for line in read_metrics(place / "two" / "metrics.jsonl")] == [0, 1, 2, 3]
    for name in ("config.yaml", "provenance.json", "tensorboard", "model/vocab_layout.json"):
        assert (place / "two" / name).exists()

    tar = max((place / "corpus").glob("*.tar"))
    os.truncate(tar, tar.stat().st_size // 2)
    broken = launched([*words, "steps=30"], place)
    shown = broken.stdout + broken.stderr
    assert broken.returncode == 2, shown[-4000:]
    assert f"{tar.name}: sample" in shown
    assert "bytes too early" in shown
    assert shown.count("slmkit train:") == 1


def test_what_is_not_there_is_refused_without_torch(place: Path) -> None:
    """All of it at once."""
    changes = ("base=no_base", "deepspeed=none.json", "global_rows=5", "micro_rows=2")
    words = ["--config", str(place / "run.yaml"), *(word for change in changes for word in ("--set", change))]
    code = "import sys; from slmkit.cli.main import main; print(main(sys.argv[1:]), 'transformers' in sys.modules)"
    command = [sys.executable, "-c", code, "train", *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.stdout == "2 False\n"
    assert "the run cannot start: 3 problems" in done.stderr
    for text in (
        "there is no such DeepSpeed file",
        "base: there is no such file or directory",
        "must equal global_rows exactly",
    ):
        assert text in done.stderr
