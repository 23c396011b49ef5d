"""Files of strangers, changed at random: each is read or refused in words, soon, and no other file is touched.

Many of them inside this process; `test_mutated_commands.py` does it with commands.
"""

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from strangers import damaged
from synthetic import codec_spec
from tiny_models import tiny_model
from train.place import Place

from slmkit.config.load import load_config
from slmkit.config.tokenize import TokenizeConfig
from slmkit.config.train import load_run
from slmkit.corpora.base import Audio, Utterance
from slmkit.data.index import Corpus, ShardIndex
from slmkit.data.sources import open_source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.files import read_npy
from slmkit.jobs import JOB, read_description
from slmkit.model.pretrained import load, read_base_config, read_export_config
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.plan import Rules, TokenizationPlan, make_plan, sift_parts
from slmkit.tokenization.progress import look
from slmkit.train.run import prepare_run
from slmkit.train.settings import check_files
from slmkit.world import World

MAX_SEC = 5.0  # of one try; a second on a machine that does nothing else
Check = Callable[[Path], object]


@pytest.fixture(autouse=True)
def no_log() -> Iterator[None]:
    """Halves of surrogate pairs in a captured log would end the test process, which cannot send them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def kinds(place: Place) -> dict[str, tuple[Path, list[Check]]]:
    """The file of each kind, and what reads it, given its directory."""
    root = place.directory
    run = root / "run"
    run.mkdir()
    (run / "ds.json").write_bytes(
        (Path(__file__).parent.parent / "ds_configs" / "zero2_offload_bf16.json").read_bytes()
    )
    config = place.config("run", "mtp", deepspeed=str(run / "ds.json"))
    (run / "run.yaml").write_text(yaml.safe_dump(config))
    (root / "job").mkdir()
    spec = codec_spec()
    options = {"source": "a", "codec": "b", "out": "c", "columns": {"text": "words"}, "devices": ["cpu"]}
    (root / "job" / "tokenize.yaml").write_text(yaml.safe_dump(options))
    job = CorpusJob(
        root / "shards", "tiny", spec, load_config(TokenizeConfig, root / "job" / "tokenize.yaml").settings()
    )
    items = [Utterance(key=f"u{i}", audio=Audio(f"{i}.wav"), text="Hi.", source="s", seconds=2.0) for i in range(7)]
    make_plan(root / "shards", sift_parts([lambda: items], Rules(), num_workers=0), shard_samples=3)
    (root / "shards" / "tasks").mkdir()
    task = {"state": "running", "host": "h", "shards_left": 3, "shards_done": 1, "seconds_done": 2.0}
    (root / "shards" / "tasks" / "0-of-1.json").write_text(json.dumps({**task, "started": 1.0, "updated": 2.0}))
    tiny_model(3).save_pretrained(root / "model")
    model = tiny_model(3)
    (root / "model" / "vocab_layout.json").write_text(json.dumps(model.layout.to_dict()))
    (root / "model" / "codec_spec.json").write_text(json.dumps(spec.to_dict()))
    np.save(root / "job" / "voice.npy", np.zeros(4, np.float32))
    assert job.directory == root / "shards"

    def trained(directory: Path) -> object:
        """All that a run decides before its first step, with a mutated file among those it reads."""
        return prepare_run(load_run(run / "run.yaml", ["deepspeed=zero2_fp32", f"run_dir={root / 'dry'}"]), World())

    def corpus(directory: Path) -> object:
        found = Corpus.open(directory)
        found.check()
        source = open_source(directory, "tts")
        rows = [(shard.frames, source.keys(i)) for i, shard in enumerate(found.shards)]
        return found.fingerprint, rows

    def planned(directory: Path) -> object:
        plan = TokenizationPlan.open(root / "shards")
        status = look(CorpusJob.open(root / "shards"), plan)
        return [plan.items(shard) for shard in range(min(9, len(plan.shards)))], status.rows(), status.to_dict()

    def run_config(directory: Path) -> object:
        config = load_run(directory / "run.yaml")
        return check_files(config, World())

    index = min(path.name for path in (root / "corpus").glob("*.index.json"))
    return {
        "run config": (run / "run.yaml", [run_config]),
        "DeepSpeed file": (run / "ds.json", [lambda d: check_files(load_run(run / "run.yaml"), World())]),
        "tokenize config": (
            root / "job" / "tokenize.yaml",
            [lambda d: load_config(TokenizeConfig, d / "tokenize.yaml")],
        ),
        "index": (root / "corpus" / index, [lambda d: ShardIndex.read(d / index), corpus, trained]),
        "manifest": (root / "corpus" / "manifest.json", [corpus, trained]),
        "plan": (root / "shards" / "plan" / "plan.json", [planned]),
        "planned items": (root / "shards" / "plan" / "items.jsonl", [planned]),
        "job": (root / "shards" / JOB, [planned, lambda d: read_description(d), lambda d: CorpusJob.open(d).made_by()]),
        "task": (root / "shards" / "tasks" / "0-of-1.json", [planned]),
        "model": (root / "model" / "config.json", [read_export_config, load]),
        "vocabulary": (root / "model" / "vocab_layout.json", [load]),
        "weights": (root / "model" / "model.safetensors", [load]),
        "tokenizer": (root / "base" / "tokenizer.json", [TextTokenizer.load]),
        "tokenizer config": (root / "base" / "tokenizer_config.json", [TextTokenizer.load]),
        "base": (root / "base" / "config.json", [read_base_config, trained]),
        "voice": (root / "job" / "voice.npy", [lambda d: read_npy(d / "voice.npy", what="a voice", max_values=99)]),
    }


def survive(path: Path, content: bytes, checks: list[Check]) -> None:
    """Put `content` in place of a file, read it, and put the file back. Nothing but a UserError may be raised."""
    kept, beside = path.read_bytes(), sorted(path.parent.iterdir())
    try:
        path.write_bytes(content)
        for check in checks:
            began = time.process_time()
            said = ""
            try:
                check(path.parent)
            except UserError as error:
                said = str(error)
            assert len(said) < 20_000
            assert time.process_time() - began < MAX_SEC, f"it took {time.process_time() - began:.1f} s"
    finally:
        path.write_bytes(kept)
    assert sorted(path.parent.iterdir()) == beside


NAMES = (
    *("run config", "DeepSpeed file", "tokenize config", "index", "manifest", "plan", "planned items", "job", "task"),
    *("model", "vocabulary", "weights", "tokenizer", "tokenizer config", "base", "voice"),
)


def try_seed(kinds: dict[str, tuple[Path, list[Check]]], name: str, seed: int) -> None:
    path, checks = kinds[name]
    survive(path, damaged(path, random.Random(seed)), checks)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
@example(seed=171100)  # a type of numbers that torch does not have, of a base
def test_a_changed_file_is_read_or_refused(kinds: dict[str, tuple[Path, list[Check]]], name: str, seed: int) -> None:
    try_seed(kinds, name, seed)
