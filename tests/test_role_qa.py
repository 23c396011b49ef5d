"""Role-playing question answering by the recipes as shipped: parquet, shards, pre-training, fine-tuning, an answer.

Tiny parts stand in for what the recipes name; whatever is changed of them is listed in `SMALL` and `place`.
"""

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from synthetic import write_conversations, write_samples
from train.place import Place
from voices import VOICES, spoken, wave_of

from slmkit.cli.main import main
from slmkit.config.load import load_config, to_dict
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.data.prompt import normalize_text
from slmkit.data.shards import Sample, ShardReader
from slmkit.data.sources import open_source
from slmkit.errors import UserError
from slmkit.evaluate.metrics.answers import exact_match
from slmkit.infer.request import Words
from slmkit.infer.samples import SpeechSamples
from slmkit.infer.synthesizer import Synthesizer
from slmkit.model.init_base import init_base
from slmkit.model.pretrained import load
from slmkit.train.metrics import read_metrics

pytestmark = pytest.mark.full

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ("A red coat.",)
FACTS = {"Who wrote the song?": "Anna Bell.", "What did he eat?": "Two pies."}
EVAL_VOICE, TEST_VOICE, *SEEN = VOICES
SMALL = {
    "deepspeed": ROOT / "ds_configs" / "zero2_fp32.json",
    "data.num_workers": 0,
    "data.row_tokens": 640,
    "global_rows": 1,
    "micro_rows": 1,
    "optimizer.lr": 4e-3,
    "epochs": "null",
    "log_every_steps": 1,
}


def parquet_rows() -> list[dict[str, Any]]:
    """As RoleTriviaQA has them: who says which answer to which question, and all answers that are right."""
    found = []
    for voice, (question, answer) in itertools.product(VOICES, FACTS.items()):
        wav = io.BytesIO()
        soundfile.write(wav, wave_of(voice, answer), 16_000, format="WAV")
        audio = {"bytes": wav.getvalue(), "path": f"{voice}.wav"}
        truths = [answer.strip("."), answer.upper()]
        row = {"speech_answer": audio, "text_answer": answer, "text_question": question, "role": voice}
        found.append({**row, "answers": truths})
    return found


def recipe(place: Path, name: str, **changes: Any) -> dict[str, Any]:
    """The values of a recipe with other parts, in the run directory place/name."""
    values = {**SMALL, "base": place / "base", "run_dir": place / name, **changes}
    words = [f"{key}={value}" for key, value in values.items()]
    return to_dict(load_config(TrainConfig, ROOT / "launch" / "recipes" / f"{name}.yaml", words))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that comes of the two recipes."""
    place = tmp_path_factory.mktemp("role_qa")
    speech = spoken(SENTENCES, FACTS)
    speech.codec.save(place / "codec")
    sentences = [sample for (_, text), sample in speech.samples.items() if text in SENTENCES]
    write_samples(place / "sentences", sentences, speech.codec.spec)
    write_conversations(place / "talk.jsonl", [[[question, answer]] for question, answer in FACTS.items()])
    (place / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(parquet_rows()), place / "parquet" / "train.parquet")
    job = ["--config", str(ROOT / "tokenize_jobs" / "roletriviaqa.yaml"), "--set", "num_workers=0"]
    assert main(["tokenize", "run", *job, str(place / "parquet"), str(place / "codec"), str(place / "answers")]) == 0
    init_base([*SENTENCES, *FACTS, *FACTS.values()], place / "base", hidden_size=64, num_layers=2, vocab_size=300)
    tasks = {"tts": "sentences", "asr": "sentences", "text": "talk.jsonl"}
    sources = ", ".join(f"{{path: {place / path}, task: {task}}}" for task, path in tasks.items())
    first = recipe(
        place,
        "emilia_libritts_pretrain",
        **{"data.sources": f"[{sources}]", "data.eval_corpus": place / "sentences", "steps": 10},
    )
    second = recipe(
        place,
        "roletriviaqa_finetune",
        **{"init_from": place / "pretrained", "data.corpus": place / "answers", "data.eval_corpus": "null"},
        **{"data.eval_speakers": f"[{EVAL_VOICE}]", "data.exclude_speakers": f"[{TEST_VOICE}]"},
        **{"steps": 150, "eval_every_steps": 75},
    )
    Place(place).run(
        1,
        [
            {"kind": "train", "config": first},
            {"kind": "consolidate", "config": first, "out": str(place / "pretrained")},
            {"kind": "train", "config": second},
            {"kind": "consolidate", "config": second, "out": str(place / "model")},
        ],
    )
    return place


@pytest.fixture(scope="module")
def samples(place: Path) -> list[Sample]:
    corpus = Corpus.open(place / "answers")
    return [ShardReader(corpus).read(i) for i in range(len(corpus))]


def test_columns_arrive_in_the_shards(samples: list[Sample]) -> None:
    assert len(samples) == len(VOICES) * len(FACTS)
    for sample, row in zip(samples, parquet_rows(), strict=True):
        expected = {"text": "text_answer", "question": "text_question", "speaker": "role", "answers": "answers"}
        assert {ours: sample.meta[ours] for ours in expected} == {ours: row[name] for ours, name in expected.items()}


def test_voices_are_kept_apart(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run says so, and saw nothing but the voices that were left."""
    words = ["--config", str(place / "roletriviaqa_finetune" / "config.yaml"), "--dry-run", "--processes", "1"]
    assert main(["train", *words]) == 0
    shown = " ".join(capsys.readouterr().out.split())  # the table wraps where its paths are long
    assert f"{place / 'answers'} (qa): {len(SEEN) * len(FACTS)} examples" in shown
    assert f"{place / 'answers'} (qa): {len(FACTS)} examples" in shown
    assert f"the voices {EVAL_VOICE} " in shown
    assert f"{len(FACTS)} examples of the voices {TEST_VOICE} " in shown
    records = list(read_metrics(place / "roletriviaqa_finetune" / "metrics.jsonl"))
    assert [r["eval/samples"] for r in records if "eval/samples" in r] == [len(FACTS)] * 2


def test_the_fine_tuned_model_answers_in_the_voices_it_was_trained_on(place: Path, samples: list[Sample]) -> None:
    synthesizer = Synthesizer.load(place / "model", place / "codec", num_slots=4, max_sec=2)
    trained = [sample for sample in samples if sample.meta["speaker"] in SEEN]
    requests = [synthesizer.answering(s.meta["question"], s.speaker, max_sec=2) for s in trained]
    outputs = dict(synthesizer.engine.run(requests))
    assert len(trained) == len(outputs) == len(SEEN) * len(FACTS)
    for number, sample in enumerate(trained):
        words = synthesizer.words_of(outputs[number])
        assert words == Words(normalize_text(sample.meta["text"]), True)
        assert exact_match(words.text, sample.meta["answers"])
        assert outputs[number].reason == "end"
        assert np.array_equal(outputs[number].codes, sample.codes)


class Writer:
    """TensorBoard's writer, as far as samples of answers use it."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self.sounds: dict[str, np.ndarray] = {}

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.words[tag] = text

    def add_audio(self, tag: str, wave: np.ndarray, step: int, sample_rate: int) -> None:
        self.sounds[tag] = wave

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert tag.endswith("/mel")


def test_tensorboard_has_its_answers(place: Path, samples: list[Sample]) -> None:
    source, writer = open_source(place / "answers", "qa"), Writer()
    parts = {"codec": place / "codec", "tokenizer": place / "base"}
    SpeechSamples(**parts, source=source, task="qa", number=len(samples))(load(place / "model"), writer, 7)
    for sample in samples:
        if sample.meta["speaker"] in SEEN:
            assert writer.words[f"speech/{sample.key}/words"] == normalize_text(sample.meta["text"])
            generated, reference = (writer.sounds[f"speech/{sample.key}/{name}"] for name in ("generated", "reference"))
            assert np.array_equal(generated, reference)
    with pytest.raises(UserError, match="speech samples of the task qa need questions"):
        SpeechSamples(**parts, source=open_source(place / "sentences", "qa"), task="qa")


def test_the_command_asks_it(
    place: Path, samples: list[Sample], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = next(sample for sample in samples if sample.meta["speaker"] in SEEN)
    voice = ["--codec", str(place / "codec"), "--speaker", f"{place / 'answers'}:{sample.key}"]
    out = str(tmp_path / "answer.wav")
    assert main(["answer", str(place / "model"), sample.meta["question"], *voice, "--out", out]) == 0
    assert capsys.readouterr().out.splitlines()[0] == normalize_text(sample.meta["text"])
    assert soundfile.info(out).frames == sample.codes.shape[1] * 200
