"""What is noted of the utterances that a model was trained on."""

from pathlib import Path

import numpy as np
import pytest
from memorising import BASE
from synthetic import codec_spec, write_conversations, write_voices

from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.sources import open_source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.model.companions import TRAINED_ON_DIR, copy_companions
from slmkit.model.pretrained import base_layout
from slmkit.model.trained_on import TrainedOn

NUM_SAMPLES = 60


def opened(path: Path, task: str, **options: int) -> TrainingData:
    tokenizer = TextTokenizer.load(BASE)
    form = ExampleFormat(task=task, group=3)
    return TrainingData.open(
        open_source(path, task), tokenizer, base_layout(tokenizer, codec_spec(), 3), form, **options
    )


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voices(tmp_path_factory.mktemp("voices"), NUM_SAMPLES, 4)


def keys_of(data: TrainingData) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def test_it_knows_what_was_trained_on_and_what_was_held_out(corpus: Path, tmp_path: Path) -> None:
    """Beside the model, in a copy of it, and together with an earlier run."""
    write_conversations(tmp_path / "said.jsonl", [[["Hello?", "Yes."]]])
    speech, text = opened(corpus, "tts"), opened(tmp_path / "said.jsonl", "text")
    known, unknown = speech.split_speakers(["v3"])
    train, held_out = known.split(0.3)
    assert len(train)
    assert len(held_out)
    found = TrainedOn.of(TrainingData.joined([train, text]), "the speakers v3")
    for name in ("model", "export"):
        (tmp_path / name).mkdir()
    found.write(tmp_path / "model")
    copy_companions(tmp_path / "model", tmp_path / "export")
    read = TrainedOn.read(tmp_path / "export")
    assert read is not None
    assert [(source.task, source.utterances, source.of) for source in read.sources] == [
        ("tts", len(train), NUM_SAMPLES),
        ("text", 1, 1),
    ]
    assert read.sources[0].sha256 == train.parts[0].source.fingerprint
    assert (read.held_out, read.is_all, len(read.keys)) == ("the speakers v3", True, len(train))
    assert read.has_keys(keys_of(train)).all()
    assert not read.has_keys([*keys_of(held_out), *keys_of(unknown), "another", "\ud800"]).any()
    assert read.has_speakers(["v0", "v3", "", "v2"]).tolist() == [True, False, False, True]

    later = TrainedOn.of(unknown)
    both, perhaps_more = later.after(read), later.after(None)
    assert both.has_keys([*keys_of(train), *keys_of(unknown)]).all()
    assert not both.has_keys(keys_of(held_out)).any()
    assert both.has_speakers(["v0", "v3"]).all()
    assert (both.is_all, perhaps_more.is_all, len(both.sources)) == (True, False, 3)
    assert perhaps_more.has_keys(keys_of(train)).sum() == 0


def test_the_first_samples_alone_and_none(corpus: Path) -> None:
    found = TrainedOn.of(opened(corpus, "tts", max_samples=5))
    assert found.has_keys(keys_of(opened(corpus, "tts"))).tolist() == [True] * 5 + [False] * (NUM_SAMPLES - 5)
    nothing = TrainedOn.of(opened(corpus, "tts", max_samples=0))
    assert nothing.has_keys(["utterance-0000"]).tolist() == [False]


def test_what_is_damaged_is_named_and_what_is_not_there_is_not_known(corpus: Path, tmp_path: Path) -> None:
    assert TrainedOn.read(tmp_path) is None
    TrainedOn.of(opened(corpus, "tts")).write(tmp_path)
    folder = tmp_path / TRAINED_ON_DIR
    for keys in (np.zeros(3, np.uint64), np.zeros(3), np.zeros((2, 1), np.uint64)):  # twice the same, no hashes
        np.save(folder / "keys.npy", keys)
        with pytest.raises(UserError, match=r"keys\.npy does not say what the model was trained on"):
            TrainedOn.read(tmp_path)
    (folder / "sources.json").write_text('{"sources": 3}')
    with pytest.raises(UserError, match=r"sources\.json does not say what the model was trained on"):
        TrainedOn.read(tmp_path)
