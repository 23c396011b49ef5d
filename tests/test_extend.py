"""A codec, a corpus layout, a kind of speech head and a metric from outside go through the whole chain."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from forked import run

from slmkit.data.index import Corpus
from slmkit.files import read_json

HERE = Path(__file__).parent
RATE, WORDS = 8000, ("One two.", "Three four.", "Five six.", "Seven eight.")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the chain of extended.py left."""
    place = tmp_path_factory.mktemp("extended")
    (place / "audio").mkdir()
    for i, text in enumerate(WORDS):
        name = "ab"[i % 2] + str(i)
        time_sec = np.arange(RATE + 800 * i) / RATE
        wave = (0.1 + 0.1 * i) * np.sin(2 * np.pi * (150 + 40 * i) * time_sec) * np.sin(2 * np.pi * 2 * time_sec) ** 2
        soundfile.write(place / "audio" / f"{name}.wav", wave, RATE)
        (place / "audio" / f"{name}.words").write_text(text)
    done = run([str(HERE / "extended.py"), str(place / "audio"), str(place / "out")])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return place / "out"


def test_the_reader_and_the_codec_made_the_shards(out: Path) -> None:
    corpus = Corpus.open(out / "shards")
    assert corpus.codec.name == "blocks"
    assert sorted(corpus.key(i) for i in range(len(corpus))) == ["a0", "a2", "b1", "b3"]


def test_the_head_was_trained_and_exported(out: Path) -> None:
    assert read_json(out / "model" / "config.json")["head"] == "twice"
    losses = [json.loads(line).get("loss") for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]


def test_it_speaks_with_the_codec(out: Path) -> None:
    assert Corpus.open(out / "shards").codec_source == str(out / "codec")
    assert read_json(out / "run" / "model" / "codec_source.json")["source"] == str(out / "codec")
    assert read_json(out / "model" / "codec_source.json")["source"] == "codec"
    assert (out / "model" / "codec" / "blocks.txt").is_file()
    assert sorted(file.name for file in (out / "model" / "voices").glob("*.npy")) == ["a.npy", "b.npy"]
    assert soundfile.info(out / "a.wav").samplerate == RATE


def test_the_metric_is_in_report_and_page(out: Path) -> None:
    report = read_json(out / "scores" / "report.json")
    assert "loudest" in report["summary"]["all"]["metrics"]
    assert "loudest" in (out / "scores" / "report.html").read_text()
