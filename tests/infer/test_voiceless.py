"""A model and a codec that take no voice: they speak, stream, are served and scored, and refuse a voice."""

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from plain_codec import RATE, PlainCodec
from seeded_voice import seeded_voice
from serve.serving import Client
from synthetic import write_samples

from slmkit.codec.added import Added
from slmkit.codec.voiced import with_voice
from slmkit.data.index import Corpus
from slmkit.data.shards import Sample
from slmkit.data.sources import open_source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.evaluate.generation import copy_synthesis, generate
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import read_voices, select
from slmkit.evaluate.spoken import Tools, Truths
from slmkit.infer.batch import speak_all
from slmkit.infer.items import read_items
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.samples import SpeechSamples
from slmkit.infer.synthesizer import Synthesizer
from slmkit.serve.server import Server
from slmkit.serve.service import ServeSettings, Service

TEXTS = ("The river froze", "Eleven lanterns")
NOT_TAKEN = "a voice would change nothing: the model has no speaker input, and the codec plain decodes without a voice"


class LoudnessVoice:
    """Stands for WavLM."""

    def vector(self, wave: np.ndarray, sample_rate: int) -> np.ndarray:
        return np.array([1, np.abs(wave).mean()], np.float32)


@pytest.fixture(scope="module")
def codec() -> PlainCodec:
    return PlainCodec(Added(streams=3, config={}, weights={"gain": torch.tensor(60.0)}), torch.device("cpu"))


@pytest.fixture(scope="module")
def corpus(codec: PlainCodec, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    samples = []
    for i, text in enumerate(TEXTS):
        time_sec = np.arange(RATE // 2) / RATE
        wave = 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time_sec) * np.sin(np.pi * (i + 3) * time_sec) ** 2
        codes = codec.encode(torch.from_numpy(wave).float()[None], torch.tensor([len(wave)])).codes[0]
        meta = {"text": text, "speaker": str(i), "language": "en", "seconds": 0.5, "source": ""}
        samples.append(Sample(f"u{i}", codes.numpy().astype(np.uint16), None, meta))
    return write_samples(tmp_path_factory.mktemp("voiceless") / "corpus", samples, codec.spec)


@pytest.fixture(scope="module")
def synthesizer(codec: PlainCodec, corpus: Corpus) -> Synthesizer:
    """It knows the corpus by heart."""
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, codec.spec, 3)
    reader = open_source(str(corpus.directory), "tts").reader
    memorise(model, one_batch(model, tokenizer, [reader.read(i) for i in range(len(corpus))]))
    return Synthesizer(model, tokenizer, codec, num_slots=2)


def test_it_speaks_streams_and_refuses_a_voice(synthesizer: Synthesizer, corpus: Corpus, codec: PlainCodec) -> None:
    assert not synthesizer.takes_voice
    assert synthesizer.read_speaker("").shape == (0,)
    speech = synthesizer.speak(TEXTS[0], synthesizer.no_voice)
    truth = Truths(corpus, codec).copy(0)
    assert np.array_equal(speech.wave, truth)
    request = synthesizer.reading(TEXTS[0], synthesizer.no_voice)
    streamed = np.concatenate(list(synthesizer.stream(request, synthesizer.no_voice)))
    assert np.abs(streamed - truth).max() < 2**-15
    for source in ("voice.wav", "voice.npy", f"{corpus.directory}:u0"):
        with pytest.raises(UserError, match=NOT_TAKEN):
            synthesizer.read_speaker(source)


def test_a_voice_that_only_the_model_would_hear_is_taken_by_aware_models_alone(
    synthesizer: Synthesizer, codec: PlainCodec
) -> None:
    """The codec beside an encoder decodes without the vector: it says nothing to a model without speaker input."""
    voiced = with_voice(codec, seeded_voice())
    unaware = Synthesizer(synthesizer.model, synthesizer.tokenizer, voiced)
    assert not unaware.takes_voice
    assert unaware.no_voice.shape == (256,)
    speech = unaware.speak(TEXTS[1], unaware.no_voice)
    assert np.array_equal(speech.wave, synthesizer.speak(TEXTS[1], synthesizer.no_voice).wave)
    model = small_model(synthesizer.tokenizer, voiced.spec, 3, speaker_dim=256)
    assert Synthesizer(model, synthesizer.tokenizer, voiced).takes_voice
    with pytest.raises(UserError, match=r"(?s)hears a speaker vector, and the given codec gives none.*width 256"):
        Synthesizer(model, synthesizer.tokenizer, codec)


def test_a_file_of_lines_needs_no_voice_and_refuses_one_line_by_line(synthesizer: Synthesizer, tmp_path: Path) -> None:
    lines = [{"id": "a", "text": TEXTS[0]}, {"id": "b", "text": TEXTS[1], "speaker": "voice.wav"}]
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    listed = read_items(tmp_path / "lines.jsonl", "tts", SpeakingSettings(), speaker="")
    summary = speak_all(synthesizer, listed, tmp_path / "out", task="tts", model="m", max_failure_share=0.5)
    assert summary.num_outputs == 1
    assert [(failure.key, failure.reason) for failure in summary.failures] == [("b", "bad_speaker")]
    assert NOT_TAKEN in summary.failures[0].detail


def test_the_server_has_one_voice(synthesizer: Synthesizer) -> None:
    with pytest.raises(UserError, match=NOT_TAKEN):
        Service(synthesizer, {"anna": np.zeros(0, np.float32)}, ServeSettings(model="tiny"))
    service = Service(synthesizer, {}, ServeSettings(model="tiny"))
    listener = socket.create_server(("127.0.0.1", 0))
    with Server(service, listener) as server, Client(server.port) as client:
        assert "default" in client.get("/v1/audio/voices").text
        for fields in ({}, {"stream": True}, {"voice": {"id": "default"}}):
            answer = client.speech(input=TEXTS[0], **{"voice": "default", "max_sec": 1, **fields})
            assert answer.status_code == 200, answer.text
        assert client.speech(input=TEXTS[0], voice="anna").status_code == 400


def test_it_is_scored_without_scores_of_voices(
    synthesizer: Synthesizer, corpus: Corpus, codec: PlainCodec, tmp_path: Path
) -> None:
    voices = read_voices(["own"], codec, synthesizer)
    assert voices == ["default"]
    generate(synthesizer, corpus, select(corpus, voices), SpeakingSettings(), tmp_path / "out", model="m")
    told: list[str] = []
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools(wavlm=LoudnessVoice()), tell=told.append)
    means = {name: found["mean"] for name, found in report["summary"]["all"]["metrics"].items()}
    assert means["frame_agreement"] == 1
    assert not means.keys() & {"codec_similarity", "other_voice_similarity", "wavlm_similarity"}
    assert any("neither the model nor the codec takes a voice" in line for line in told)
    for names in (["swapped"], ["own", "voice.npy"]):
        with pytest.raises(UserError, match=NOT_TAKEN):
            read_voices(names, codec, synthesizer)


def test_copies_have_the_voices_of_their_codes(corpus: Corpus, codec: PlainCodec, tmp_path: Path) -> None:
    voices = read_voices(["own"], codec, None)
    copy_synthesis(codec, corpus, select(corpus, voices), SpeakingSettings(), tmp_path / "out")
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools(wavlm=LoudnessVoice()))
    assert report["notes"] == ["no SIM codec: the codec has no speaker vectors"]
    assert report["summary"]["all"]["metrics"]["wavlm_similarity"]["mean"] == pytest.approx(1)
    with pytest.raises(UserError, match=NOT_TAKEN):
        read_voices(["swapped"], codec, None)


def test_tensorboard_hears_it(
    synthesizer: Synthesizer, corpus: Corpus, codec: PlainCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = set()

    class Writer:
        def add_audio(self, name: str, *_: object, **__: object) -> None:
            heard.add(name)

        add_text = add_image = lambda *_, **__: None

    monkeypatch.setattr("slmkit.infer.samples.open_codec", lambda path: codec)
    source = open_source(str(corpus.directory), "tts")
    speak = SpeechSamples(codec="codec", tokenizer=BASE, source=source)
    speak(synthesizer.model, Writer(), 7)
    assert heard == {f"speech/u{i}/{kind}" for i in range(2) for kind in ("generated", "reference")}
