"""Imports go one way, third parties stay behind one file each, and importing is free."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "slmkit"
# Each line may import only lines above it; the parts on one line never import each other, unless they are support.
RANKS = [
    ("errors", "texts"),
    ("log", "world", "group", "files", "stopping", "plot", "pages", "assets"),
    ("jobs", "weights", "precision", "native", "garbage"),
    ("audio",),
    ("hub",),
    ("config",),
    ("voice",),
    ("codec",),
    ("data",),
    ("corpora",),
    ("model",),
    ("tokenization",),
    ("checkpoints",),
    ("export", "infer"),
    ("train",),
    ("cluster",),
    ("evaluate", "serve", "bench"),
    ("study",),
    ("cli",),
]
RANK_OF = {part: rank for rank, parts in enumerate(RANKS) for part in parts}
CONFINED = {
    "deepspeed": ("train/engine.py", "checkpoints/", "export.py"),
    "fsspec": ("data/remote.py",),
    "webdataset": ("data/shards.py", "data/loader.py"),
    "triton": ("codec/snake/fused.py",),
    "slmkit.codec.facodec": ("codec/facodec/", "bench/"),
    "slmkit.codec.bigcodec": ("codec/bigcodec/", "bench/"),
    "slmkit.codec.speechtokenizer": ("codec/speechtokenizer/", "bench/"),
    "soundfile": ("audio/",),
    "soxr": ("audio/",),
    "av": ("audio/",),
    "fastapi": ("serve/",),
    "starlette": ("serve/",),
    "uvicorn": ("serve/",),
    "sse_starlette": ("serve/",),
    "prometheus_client": ("serve/",),
    "jinja2": ("pages.py",),
    "filelock": ("data/",),
    "huggingface_hub": ("hub.py", "model/pretrained.py", "codec/hf/"),
    "scipy": ("evaluate/results.py",),
    "sentencex": ("infer/sentences.py",),
    "voxnorm": ("infer/spoken_form.py",),
    "num2words": ("infer/spoken_form.py",),
    "matplotlib": ("plot.py",),
    "PIL": ("plot.py",),
    "pyarrow": ("corpora/parquet.py",),
    "jiwer": ("evaluate/metrics/words.py",),
    "pystoi": ("evaluate/metrics/copy_quality.py",),
    "pesq": ("evaluate/metrics/copy_quality.py",),
    "onnxruntime": ("audio/packaged.py",),
    "distillmos": ("evaluate/metrics/opinion.py",),
}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TOP_LEVEL = {
    "setup.py",
    "README.md",
    "ds_configs",
    "slmkit",
    "launch",
    "tokenize_jobs",
    "tests",
    "LICENSE",
    "CHANGELOG.md",
}


@cache
def imported_names(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def part_of(dotted: str) -> str:
    return dotted.split(".")[1]


@pytest.mark.parametrize("file", [f for f in FILES if f not in ("__init__.py", "__main__.py")])
def test_imports_go_one_way(file: str) -> None:
    mine = part_of("slmkit." + file.removesuffix(".py").replace("/", "."))
    assert mine in RANK_OF, f"slmkit/{mine} has no rank"
    for name in imported_names(PACKAGE / file):
        if not name.startswith("slmkit.") or name == "slmkit.__version__":
            continue
        theirs = part_of(name)
        assert theirs == mine or RANK_OF[theirs] < RANK_OF[mine], f"{file} imports {name}"


@pytest.mark.parametrize("file", FILES)
def test_third_parties_stay_behind_their_files(file: str) -> None:
    for name in imported_names(PACKAGE / file):
        for confined, homes in CONFINED.items():
            if name == confined or name.startswith(confined + "."):
                assert file.startswith(homes), f"{file} imports {name}"


def test_only_world_reads_rank_variables() -> None:
    words = ('"RANK"', '"LOCAL_RANK"', '"WORLD_SIZE"', "SLURM_PROCID")
    readers = [f for f in FILES if any(f"environ.get({w}" in (PACKAGE / f).read_text() for w in words)]
    readers += [f for f in FILES if any(f"environ[{w}" in (PACKAGE / f).read_text() for w in words)]
    assert [f for f in readers if f != "world.py"] == []


def test_importing_is_free() -> None:
    code = (
        "import sys, slmkit, slmkit.cli.main, slmkit.config.load, slmkit.data.vocab\n"
        "heavy = {'torch', 'deepspeed', 'transformers', 'webdataset'} & set(sys.modules)\n"
        "import logging\n"
        "print(sorted(heavy), logging.getLogger().handlers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] []"


def test_top_level_holds_only_what_was_agreed() -> None:
    tracked = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=False).stdout.split()
    names = {name.split("/")[0] for name in tracked}
    assert {name for name in names if not name.startswith(".")} <= TOP_LEVEL


def test_the_table_of_guarantees_names_tests_that_exist() -> None:
    """And says rightly which run they are in. A test that is `full` only with some parameters counts as default."""
    rows = [line.split("|") for line in (ROOT / "tests" / "README.md").read_text().splitlines() if ".py::" in line]
    assert len(rows) > 15
    for *_, named, run, _ in rows:
        file, name = named.strip().strip("`").split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name]
        assert found, f"{file} has no {name}"
        marks = [ast.unparse(decorator) for decorator in found[0].decorator_list]
        marks += [
            ast.unparse(n.value) for n in tree.body if isinstance(n, ast.Assign) and "pytestmark" in ast.unparse(n)
        ]
        assert ("pytest.mark.full" in marks) == (run.strip() == "full"), f"{file}::{name} is in the other run"
