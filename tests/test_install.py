"""`pip install .` is enough: an installed slmkit works away from the checkout, with all its recipes and scripts."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from synthetic import WORDS, write_corpus

from slmkit.assets import assets
from slmkit.cli.main import main
from slmkit.model.init_base import init_base

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "tokenize_jobs" / "sample_corpus"
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
OFFLINE = ["--no-index", "--no-deps"]
pytestmark = pytest.mark.full  # a wheel, an environment and a training run: a minute

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(words: list[str], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run without this checkout on the path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(words, cwd=directory, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files under version control, so that nothing is left over from other builds."""
    copy = tmp_path_factory.mktemp("source")
    listed = command(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).stdout.split("\n")
    if not listed[0]:
        pytest.skip("not a git checkout")
    for name in filter(None, listed):
        if name.startswith("tests/") or not (ROOT / name).is_file():
            continue
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    done = command([*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", str(out), str(source)], out)
    assert done.returncode == 0, done.stderr[-4000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def slmkit(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The `slmkit` command of an environment of its own, started in an empty directory or the given one."""
    place = tmp_path_factory.mktemp("environment")
    assert command([sys.executable, "-m", "venv", "--without-pip", "venv"], place).returncode == 0
    python = place / "venv" / "bin" / "python"
    done = command([*PIP, "--python", str(python), "install", *OFFLINE, str(wheel)], place)
    assert done.returncode == 0, done.stderr[-4000:]
    site = next((place / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    where = command([str(python), "-c", "import slmkit; print(slmkit.__file__)"], place).stdout
    assert where.startswith(str(site)), where
    (place / "empty").mkdir()

    def run(*words: str, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
        path = f"{python.parent}:{os.environ['PATH']}"
        return command([str(python.parent / "slmkit"), *words], directory or place / "empty", PATH=path)

    return run


def test_wheel_and_source_distribution_hold_every_file(wheel: Path, source: Path, tmp_path: Path) -> None:
    data = {path.relative_to(source).as_posix() for path in (source / "slmkit").rglob("*") if path.is_file()}
    data = {name for name in data if not name.endswith((".md", ".pyc"))}
    ours = {asset.path.relative_to(ROOT).as_posix() for asset in assets()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {*data, *(f"slmkit/assets/{name}" for name in ours)} <= names
    assert [name for name in names if name.startswith(("launch", "tests", "tokenize_jobs"))] == []
    done = command([sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)], source)
    assert done.returncode == 0, done.stderr[-4000:]
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {*data, *ours, "setup.py", "README.md", "LICENSE"} <= names


def test_recipes_are_listed_and_copied(slmkit: Run, tmp_path: Path) -> None:
    listed = slmkit("recipe", "list")
    names = [line.split()[0] for line in listed.stdout.splitlines() if not line.startswith(" ")]
    assert names == [asset.name for asset in assets()]
    assert slmkit("recipe", "copy", "libritts_mtp3", directory=tmp_path).returncode == 0
    assert (tmp_path / "libritts_mtp3.yaml").read_bytes() == (ROOT / "launch/recipes/libritts_mtp3.yaml").read_bytes()


def test_slurm_jobs_find_their_scripts(slmkit: Run, tmp_path: Path) -> None:
    launch = slmkit("launch", "--config", "libritts_ntp", "--slurm", "--processes", "8", "--dry-run")
    assert launch.returncode == 0, launch.stderr
    script = next(word for word in launch.stdout.split() if word.endswith("train.sbatch"))
    assert (Path(script).is_file(), "assets/launch" in script) == (True, True)

    assert main(["codec", "fit", str(SAMPLES), str(tmp_path / "codec")]) == 0
    paths = [str(SAMPLES), str(tmp_path / "codec"), str(tmp_path / "out")]
    submit = slmkit("tokenize", "submit", "--dry-run", *paths, "--config", "libritts", "shard_samples=8")
    assert submit.returncode == 0, submit.stderr
    assert submit.stdout.count("assets/tokenize_jobs/") == 3  # two scripts and the recipe
    assert "shard_samples=8" in submit.stdout


def test_a_run_is_trained_with_settings_by_name(slmkit: Run, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", 12, frames=(4, 12))
    init_base([" ".join(WORDS)] * 3, tmp_path / "base", hidden_size=16, num_layers=1, vocab_size=280)
    data = {"corpus": "corpus", "row_tokens": 160, "num_workers": 0}
    config = {"run_dir": "run", "base": "base", "deepspeed": "zero2_fp32", "data": data, "steps": 9, "global_rows": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = slmkit("train", "--config", "run.yaml", "steps=2", "log_every_steps=1", directory=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("step") == 2 for line in lines)
    assert (tmp_path / "run" / "checkpoints" / "step-2" / "complete.json").is_file()
