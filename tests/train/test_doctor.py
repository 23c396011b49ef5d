"""What `slmkit doctor` finds right and wrong."""

import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from synthetic import codec_spec, write_corpus
from train.ranks import ROOT, run_ranks
from train.tiny_run import make_tiny, tiny_config

from slmkit.checkpoints import checkpoint
from slmkit.config import run_dir as runs
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.errors import UserError
from slmkit.files import write_json
from slmkit.model import kernels
from slmkit.model.pretrained import LAYOUT_FILE
from slmkit.train import doctor
from slmkit.train.doctor import CheckResult
from slmkit.train.parity import StepComparison
from slmkit.train.run import open_sources, prepare_run
from slmkit.train.settings import Attempts
from slmkit.world import World

WORKER = str(Path(__file__).with_name("parity_worker.py"))
TIED = "lm_model.model.embed_tokens.weight"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_tiny(tmp_path_factory.mktemp("doctor"))
    write_corpus(place / "other", 20, frames=(4, 12), seed=1)
    write_corpus(place / "wider", 20, frames=(4, 12), spec=codec_spec((16, 16, 32)))
    return place


def by_name(results: list[CheckResult]) -> dict[str, CheckResult]:
    return {result.name: result for result in results}


def pretend(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str | None]) -> None:
    """Other versions than the installed ones; None is not installed."""
    whole = importlib.metadata.version

    def version(package: str) -> str:
        found = versions.get(package, "") if package in versions else whole(package)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(package)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)


def require(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda package: list(lines))


def test_versions_of_this_machine_are_the_tested_ones() -> None:
    (result,) = doctor.check_versions()
    assert result.status == "ok"
    assert f"python {platform.python_version()}" in result.what
    assert f"deepspeed {importlib.metadata.version('deepspeed')}" in result.what
    assert "pytest" not in result.what


def test_a_version_outside_the_range_fails_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, "deepspeed<=0.19.8,>=0.19.4", "torch>=2.11", "absent-package>=1.5")
    pretend(monkeypatch, {"deepspeed": "0.19.2", "torch": "2.13.0+cu130", "absent-package": None})
    wrong, missing = doctor.check_versions()
    assert (wrong.status, wrong.got) == ("FAIL", "0.19.2")
    assert wrong.what == "deepspeed is outside the tested range"
    assert wrong.expected == "deepspeed >=0.19.4,<=0.19.8"
    assert (missing.status, missing.what, missing.got) == ("FAIL", "absent-package is not installed", "nothing")
    assert "pip install" in wrong.next_step


def test_optional_packages_only_warn_and_tools_for_development_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch, 'flash-attn>=2.7; extra == "flash"', 'jiwer>=4; extra == "eval"', 'ruff>=99; extra == "dev"')
    pretend(monkeypatch, {"flash-attn": "2.6", "jiwer": None})
    (result,) = doctor.check_versions()
    assert (result.status, result.what) == ("warn", "flash-attn is outside the tested range")


def test_python_outside_the_range_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    require(monkeypatch)
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.1")
    (result,) = doctor.check_versions()
    assert (result.status, result.got, result.expected) == ("FAIL", "3.10.1", "python >=3.11")


def test_a_source_tree_that_is_not_installed_has_no_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "requires", absent)
    (result,) = doctor.check_versions()
    assert result.status == "FAIL"
    assert "slmkit is not installed" in result.what


def test_training_logs_what_is_wrong_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    require(monkeypatch, "deepspeed>=0.19.4")
    pretend(monkeypatch, {"deepspeed": "0.17.6"})
    monkeypatch.setattr(doctor, "LOW_FREE_GB", 1e9)
    doctor.warn_at_start(World(rank=1, size=2), tmp_path)
    assert caplog.text == ""
    doctor.warn_at_start(World(), tmp_path / "not" / "there")
    assert f"{tmp_path}/not/there is slow or nearly full" in caplog.text
    assert "deepspeed is outside the tested range: got 0.17.6, expected deepspeed >=0.19.4" in caplog.text


def test_accelerator_without_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "absent")
    result = doctor.check_accelerator(World())
    assert (result.status, result.what) == ("ok", "cpu; attention: scaled_dot_product_attention")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path)
    result = doctor.check_accelerator(World())
    assert result.status == "FAIL"
    assert "torch cannot use a GPU" in result.what


def test_accelerator_with_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "H200")

    def install(*names: str) -> None:
        found = tuple(
            kernels.Kernel(name=name, attend=lambda *_: _[0], is_traced=True, head_widths=(64,)) for name in names
        )
        monkeypatch.setattr(kernels, "installed", lambda: found)

    install(kernels.TORCH_VARLEN)
    assert doctor.check_accelerator(World()).what == "H200; attention in bf16: torch varlen"
    pretend(monkeypatch, {"flash-attn": "2.8"})
    result = doctor.check_accelerator(World())
    assert (result.status, result.what) == ("warn", "flash-attn is installed but cannot be used")
    install(kernels.FLASH_2, kernels.TORCH_VARLEN)
    assert doctor.check_accelerator(World()).what == "H200; attention in bf16: flash-attn 2"
    pretend(monkeypatch, {"flash-attn": "2.8", "flash-attn-4": "4.0"})
    result = doctor.check_accelerator(World())
    assert (result.status, result.what) == ("warn", "flash-attn-4 is installed but cannot be used")
    install(kernels.FLASH_4, kernels.FLASH_2, kernels.TORCH_VARLEN)
    assert doctor.check_accelerator(World()).what == "H200; attention in bf16: flash-attn 4"
    result = doctor.check_accelerator(World(rank=1, size=2, local_rank=1))  # as under `srun --gpus-per-task=1`
    assert (result.status, result.what) == ("ok", "H200; attention in bf16: flash-attn 4")


def test_run_directory_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    result = doctor.check_run_dir(tmp_path / "new" / "run")
    assert result.status in ("ok", "warn"), result
    assert "MB/s" in result.what + result.got
    assert "GB free" in result.what + result.got
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("mb_per_sec", "free_gb", "status"), [(50, 20, "ok"), (49, 2000, "warn"), (900, 19.9, "warn")])
def test_slow_and_full_disks_warn(mb_per_sec: float, free_gb: float, status: str) -> None:
    result = doctor.judge_disk(Path("/runs/a"), mb_per_sec, free_gb)
    assert result.status == status
    assert f"{mb_per_sec} MB/s, {free_gb:.1f} GB free" in result.what + result.got


@pytest.mark.parametrize("kind", ["below a file", "in /proc"])
def test_a_run_directory_that_cannot_be_written_fails(tmp_path: Path, kind: str) -> None:
    """Root may write nearly everywhere, so these are places where no one may."""
    (tmp_path / "file").write_text("")
    path = {"below a file": tmp_path / "file" / "run", "in /proc": Path("/proc/run")}[kind]
    result = doctor.check_run_dir(path)
    assert result.status == "FAIL"
    assert f"cannot write {path}" in result.what
    assert "choose another directory" in result.next_step


def test_data_that_fits(place: Path, tmp_path: Path) -> None:
    given = tiny_config(place, tmp_path, data={"eval_corpus": str(place / "other")})
    results = by_name(doctor.check_data(given, World(size=2)))
    assert {result.status for result in results.values()} == {"ok"}, results
    assert results["batch"].what == "1 rows * 2 micro-batches * 2 processes = 4, fp32"
    assert Corpus.open(place / "corpus").fingerprint[:12] in results["corpus"].what
    assert prepare_run(given, World()).layout.sha256[:12] in results["vocabulary"].what
    assert "step 0" in results["checkpoint"].what


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("corpus", {"data": {"corpus": "/nowhere"}}, "holds no finished corpus"),
        ("corpus", {"data": {"eval_corpus": "wider"}}, "streams differs"),
        ("vocabulary", {"base": "/nowhere"}, "no such model directory"),
        ("batch", {"global_rows": 3}, "must equal global_rows exactly"),
        ("codec", {"codec": "/nowhere"}, "is not a codec directory"),
        ("model", {"model": {"group": 3, "head": "lnear"}}, "unknown head of the model"),
        ("model", {"init_from": "/nowhere"}, "is not the directory of an exported model"),
    ],
)
def test_data_that_does_not_fit_is_named(
    place: Path, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    change = json.loads(json.dumps(change).replace('"wider"', f'"{place / "wider"}"'))
    results = by_name(doctor.check_data(tiny_config(place, tmp_path, **change), World(size=2)))
    assert results[name].status == "FAIL"
    assert message in results[name].what
    assert [other for other, result in results.items() if result.status != "ok"] == [name]


@pytest.mark.parametrize("name", ["corpus", "eval_corpus"])
def test_a_shard_that_is_cut_short_is_found(place: Path, tmp_path: Path, name: str) -> None:
    corpus = write_corpus(tmp_path / "cut", 20)
    os.truncate(tmp_path / "cut" / corpus.shards[1].tar, 512)
    given = tiny_config(place, tmp_path / "run", data={name: str(tmp_path / "cut")})
    result = by_name(doctor.check_data(given, World()))["corpus"]
    assert result.status == "FAIL"
    assert f"{corpus.shards[1].tar} is cut short" in result.what


def test_a_codec_that_did_not_make_the_corpus_fails(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opened:
        spec = replace(codec_spec(), weights_sha256="ffff")

    monkeypatch.setattr(doctor, "open_codec", lambda path: Opened)
    result = by_name(doctor.check_data(tiny_config(place, tmp_path, codec="CODEC"), World()))["codec"]
    assert (result.status, result.got, result.expected) == ("FAIL", "ffff", "0")
    assert "the codec of CODEC is not the codec of" in result.what
    Opened.spec = codec_spec()
    result = by_name(doctor.check_data(tiny_config(place, tmp_path, codec="CODEC"), World()))["codec"]
    assert result.status == "ok"

    def refuse(config: TrainConfig, *_: Any) -> None:
        raise UserError("speech samples need speaker vectors")

    monkeypatch.setattr(doctor, "speech_samples", refuse)
    result = by_name(doctor.check_data(tiny_config(place, tmp_path, codec="CODEC"), World()))["codec"]
    assert (result.status, result.what) == ("FAIL", "speech samples need speaker vectors")


def test_a_run_begun_with_another_vocabulary_fails(place: Path, tmp_path: Path) -> None:
    begun = prepare_run(tiny_config(place, tmp_path), World())
    write_json(tmp_path / runs.MODEL / LAYOUT_FILE, begun.layout.to_dict())
    assert by_name(doctor.check_data(tiny_config(place, tmp_path), World()))["vocabulary"].status == "ok"
    changed = tiny_config(place, tmp_path, data={"corpus": str(place / "wider")})
    result = by_name(doctor.check_data(changed, World()))["vocabulary"]
    assert result.status == "FAIL"
    assert "codebook size of stream c differs" in result.what or "id of <sosp> differs" in result.what


def test_a_checkpoint_of_another_corpus_fails(place: Path, tmp_path: Path) -> None:
    facts = prepare_run(tiny_config(place, tmp_path), World()).facts
    (runs.root(tmp_path) / runs.name(4)).mkdir(parents=True)
    checkpoint.finish(tmp_path, 4, {"facts": facts})
    result = by_name(doctor.check_data(tiny_config(place, tmp_path), World()))["checkpoint"]
    assert result.status == "ok"
    assert "continue at step 4" in result.what
    changed = tiny_config(place, tmp_path, data={"corpus": str(place / "other")})
    result = by_name(doctor.check_data(changed, World()))["checkpoint"]
    assert (result.status, result.expected) == ("FAIL", str(facts["data.sources"]))
    assert "data.sources has changed" in result.what


def test_the_facts_are_those_of_training(place: Path, tmp_path: Path) -> None:
    run = prepare_run(tiny_config(place, tmp_path), World())
    known = doctor.known_facts(run.config, run.settings, open_sources(run.config, Attempts())[0], run.layout)
    assert known == {name: fact for name, fact in run.facts.items() if name != "processes"}


def test_a_wrong_sum_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(doctor, "sum_over_ranks", lambda values: values * 3)
    assert doctor.check_all_reduce(World(rank=0, size=2), cpu).status == "ok"
    monkeypatch.setattr(doctor, "sum_over_ranks", lambda values: values)
    result = doctor.check_all_reduce(World(rank=0, size=2), cpu)
    assert (result.status, result.got, result.expected) == ("FAIL", "1.0 to 1.0", "3.0")


def test_a_deepspeed_that_cannot_start_is_a_user_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def broken(world: World) -> Iterator[torch.device]:
        raise RuntimeError("Ninja is required")
        yield

    monkeypatch.setattr(doctor, "process_group", broken)
    results = doctor.examine(World())
    with pytest.raises(UserError, match="DeepSpeed cannot run a training step here") as caught:
        list(results)
    assert caught.value.got == "RuntimeError: Ninja is required"


def step(norm: float = 1.0, **differences: float) -> StepComparison:
    return StepComparison(norm=norm, plain_norm=1.0, differences=differences)


@pytest.mark.parametrize(
    ("steps", "got"),
    [
        ([step(a=1e-6, b=1e-5)], ""),
        ([step(a=1e-6, b=0.5)], "b by 50.0%, 1 of 2 parameters (ZeRO-2"),
        ([step(a=float("nan"), b=0.5)], "a by nan%, 2 of 2 parameters (ZeRO-2"),
        ([step(0.5, a=0.0), step(a=1.0)], "gradient norm 0.5 in place of 1 (ZeRO-2"),
        ([step(float("nan"), a=0.0)], "gradient norm nan in place of 1 (ZeRO-2"),
    ],
)
def test_parity_is_judged_by_the_first_step_that_differs(steps: list[StepComparison], got: str) -> None:
    result = doctor.judge_parity(steps, World())
    assert result.status == ("FAIL" if got else "ok")
    assert result.got.startswith(got)


def test_parity_is_checked_for_the_stage_of_the_run(place: Path, tmp_path: Path) -> None:
    """Where the file is refused another check says so."""
    (tmp_path / "seven.json").write_text('{"zero_optimization": {"stage": 7}}')
    files = {"zero3_fp32": 3, "zero1_bf16": 1, "missing": 2}
    for name, stage in files.items():
        assert doctor.stage_of(tiny_config(tmp_path, deepspeed=str(ROOT / "ds_configs" / f"{name}.json"))) == stage
    assert doctor.stage_of(tiny_config(tmp_path, deepspeed=str(tmp_path / "seven.json"))) == 2
    assert doctor.stage_of(None) == 2
    assert "(ZeRO-3, accumulation 2" in doctor.judge_parity([step(a=0.0)], World(), 3).what


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.full), 2])
def parity(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Results of one start of 1 or 2 processes, by fault."""
    file = tmp_path_factory.mktemp("parity") / "results.json"
    run_ranks(request.param, [WORKER, str(file)])
    return json.loads(file.read_text())


@pytest.mark.full
def test_broken_accumulation_is_found_and_named(parity: dict[str, dict[str, str]]) -> None:
    assert parity["none"]["status"] == "ok", parity["none"]
    broken = {fault: f"{result['status']} {result['got']}" for fault, result in parity.items()}
    assert broken["scale"].startswith("FAIL gradient norm ")
    for fault in ("first micro-batch dropped", "last micro-batch counts twice"):
        assert re.match(r"FAIL [a-z]\S+ by \d", broken[fault]), parity[fault]
        assert "gradient norm" in broken[fault]
    assert broken["tied"].startswith(f"FAIL {TIED} by "), parity["tied"]
