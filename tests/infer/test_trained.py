"""Models that are trained here, on espeak-ng speech in four voices, read and answer as they were taught.

Every text is said in every voice, so the speaker vector alone tells how it must sound. One model learns two tasks: to
read sentences and to answer questions.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from voices import VOICES, Spoken, spoken

from slmkit.data.prompt import normalize_text
from slmkit.data.text import TextTokenizer
from slmkit.evaluate.metrics.answers import exact_match
from slmkit.infer.request import Output, Request, Words
from slmkit.infer.synthesizer import Synthesizer

SENTENCES = ("Nine boats.", "A red coat.", "The old map.")
FACTS = {"Who wrote the song?": "Anna Bell.", "Where is the ship?": "In Dover.", "What did he eat?": "Two pies."}
MAX_SEC = 3.0


@pytest.fixture(scope="module")
def speech() -> Spoken:
    return spoken(SENTENCES, FACTS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(0, marks=pytest.mark.full, id="ntp"),
        pytest.param(3, id="mtp3"),
        pytest.param(12, marks=pytest.mark.full, id="mtp12"),
    ],
)
def synthesizer(speech: Spoken, request: pytest.FixtureRequest) -> Synthesizer:
    """Of a model that knows all of it by heart."""
    tokenizer = TextTokenizer.load(BASE)
    options = {"hidden_size": 96, "speaker_dim": speech.codec.spec.speaker_dim}
    model = small_model(tokenizer, speech.codec.spec, request.param, **options)
    samples = list(speech.samples.values())
    tasks = ["qa" if "question" in sample.meta else "tts" for sample in samples]
    memorise(model, one_batch(model, tokenizer, samples, tasks), max_steps=200, lr=4e-3)
    return Synthesizer(model, tokenizer, speech.codec, num_slots=8, max_sec=4)


def outputs_of(synthesizer: Synthesizer, requests: Sequence[Request]) -> list[Output]:
    found = dict(synthesizer.engine.run(requests))
    return [found[number] for number in range(len(requests))]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def heard(synthesizer: Synthesizer, output: Output, vector: np.ndarray) -> np.ndarray:
    """The speaker vector of what is heard, float32 [D]."""
    wave = torch.from_numpy(synthesizer.decode(output.codes, torch.from_numpy(vector)))
    return synthesizer.codec.encode(wave[None], torch.tensor([len(wave)])).speaker[0].numpy()


def agreement(codes: np.ndarray, other: np.ndarray) -> float:
    """Share of equal codes, of the frames that both have, scaled by how much of the longer that is."""
    length = min(codes.shape[1], other.shape[1])
    return float((codes[:, :length] == other[:, :length]).sum()) / max(codes.size, other.size)


def check_spoken(synthesizer: Synthesizer, speech: Spoken, outputs: dict[tuple[str, str], Output]) -> None:
    """Codes by (voice, text) are those of the recordings, and the voice that is heard is the asked one's."""
    for asked, output in outputs.items():
        assert (output.reason, output.limit, output.attempts) == ("end", None, 1), asked
        assert np.array_equal(output.codes, speech.samples[asked].codes), asked
    for text in {text for _, text in outputs}:
        voices = {v: heard(synthesizer, outputs[v, text], speech.vector(v, text)) for v in VOICES}
        for one, other in itertools.permutations(VOICES, 2):
            own, foreign = (cosine(voices[one], speech.vector(voice, text)) for voice in (one, other))
            assert own > foreign, (text, one, other)


@pytest.mark.full
def test_sentences_come_out_as_they_were_learnt(synthesizer: Synthesizer, speech: Spoken) -> None:
    asked = list(itertools.product(VOICES, SENTENCES))
    requests = [synthesizer.reading(text, speech.vector(voice, text), max_sec=MAX_SEC) for voice, text in asked]
    outputs = dict(zip(asked, outputs_of(synthesizer, requests), strict=True))
    check_spoken(synthesizer, speech, outputs)


@pytest.mark.full
def test_the_voice_follows_a_vector_that_was_never_learnt(synthesizer: Synthesizer, speech: Spoken) -> None:
    """The mean vector of each voice. The codec gives the timbre of any codes, so that what the model does is seen in
    the codes: they are those of the asked voice's own recording rather than of another's. By chance 3 of 12 would be;
    11 or 12 are, and learning by heart promises none.
    """
    means = {v: np.mean([speech.vector(v, text) for _, text in speech.samples], axis=0) for v in VOICES}
    asked = list(itertools.product(VOICES, SENTENCES))
    requests = [synthesizer.reading(text, means[voice], max_sec=MAX_SEC) for voice, text in asked]
    followed = 0
    for (voice, text), output in zip(asked, outputs_of(synthesizer, requests), strict=True):
        sounds = heard(synthesizer, output, means[voice])
        assert all(cosine(sounds, means[voice]) > cosine(sounds, means[v]) for v in VOICES if v != voice)
        shares = {v: agreement(output.codes, speech.samples[v, text].codes) for v in VOICES}
        followed += shares[voice] > 0.5 and shares[voice] == max(shares.values())
    assert followed >= 9


@pytest.mark.full
def test_questions_are_answered_in_text_and_in_the_voice_that_was_asked_for(
    synthesizer: Synthesizer, speech: Spoken
) -> None:
    asked = list(itertools.product(VOICES, FACTS))
    requests = [
        synthesizer.answering(question, speech.vector(voice, FACTS[question]), max_sec=MAX_SEC)
        for voice, question in asked
    ]
    outputs = outputs_of(synthesizer, requests)
    for (_, question), output in zip(asked, outputs, strict=True):
        words = synthesizer.words_of(output)
        assert words == Words(normalize_text(FACTS[question]), True)
        assert exact_match(words.text, [FACTS[question]])
    by_text = {(voice, FACTS[question]): output for (voice, question), output in zip(asked, outputs, strict=True)}
    check_spoken(synthesizer, speech, by_text)
