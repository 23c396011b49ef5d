"""Frames per text token of a corpus: by language, for every task that speaks, and as a file beside a model."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from memorising import BASE
from synthetic import codec_spec, write_samples

from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.rates import Rate, SpeechRates, num_text_tokens, speech_rates
from slmkit.data.shards import Sample
from slmkit.data.sources import open_source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.model.companions import RATES_FILE, copy_companions, rates_beside, write_companions
from slmkit.model.pretrained import base_layout

TOKENIZER = TextTokenizer.load(BASE)
LAYOUT = base_layout(TOKENIZER, codec_spec(), 3)
TEXTS = ("A clock stopped", "Nobody had told him that the river froze", "Yes")


def opened(directory: Path, frames_per_token: dict[str, list[int]], task: str = "tts", **form: bool) -> TrainingData:
    """A corpus with so many frames per token in the utterances of each language."""
    samples = []
    for language, rates in frames_per_token.items():
        for rate in rates:
            text = TEXTS[len(samples) % len(TEXTS)]
            num_frames = rate * num_text_tokens(text, TOKENIZER.encode, LAYOUT)
            meta = {"text": text, "question": "Is it so, and why?", "language": language, "seconds": 1.0}
            codes = np.zeros((3, num_frames), np.uint16)
            samples.append(Sample(f"u{len(samples)}", codes, np.zeros(8, np.float32), meta))
    source = open_source(write_samples(directory, samples, codec_spec()).directory, task)
    return TrainingData.open(source, TOKENIZER, LAYOUT, ExampleFormat(task=task, group=3, **form), cache_dir=None)


def test_the_text_alone_is_counted() -> None:
    assert num_text_tokens("", TOKENIZER.encode, LAYOUT) == 0
    one, two, many = (num_text_tokens(text, TOKENIZER.encode, LAYOUT) for text in ("Yes", "Yes it", TEXTS[1]))
    assert 0 < one < two < many <= len(TEXTS[1])


@pytest.mark.parametrize("speaker", [False, True])
def test_quantiles_of_a_corpus_and_of_its_languages(tmp_path: Path, speaker: bool) -> None:
    spoken = {"en": [5, 4, 6, 5, 20], "": [1, 30], "de": [10] * 3}
    rates = speech_rates(opened(tmp_path / "c", spoken, speaker=speaker).parts)
    assert rates is not None
    assert set(rates.languages) == {"en", "de"}
    # A token more or less may come of the words around the text.
    assert rates.languages["de"].median == pytest.approx(10, rel=0.25)
    english = rates.languages["en"]
    assert [english.lowest, english.median, english.highest] == pytest.approx([4, 5, 20], rel=0.25)
    assert [rates.all.lowest, rates.all.highest] == pytest.approx([1, 30], rel=0.25)
    assert rates.widest.lowest == min(rates.all.lowest, english.lowest)


def test_of_questions_the_answers_are_counted(tmp_path: Path) -> None:
    rates = speech_rates(opened(tmp_path / "c", {"en": [8] * 6}, task="qa").parts)
    assert rates is not None
    assert rates.all.median == pytest.approx(8, rel=0.25)


def test_what_is_not_spoken_has_no_rate(tmp_path: Path) -> None:
    heard = opened(tmp_path / "c", {"en": [5]}, task="asr")
    assert speech_rates(heard.parts) is None
    assert speech_rates([dataclasses.replace(part, count=0) for part in heard.parts]) is None


def test_they_go_with_the_model(tmp_path: Path) -> None:
    usual = Rate(lowest=1.0, median=2.0, high=3.0, highest=4.5)
    rates = SpeechRates(all=usual, languages={"zh": dataclasses.replace(usual, highest=9.0)})
    assert rates.widest == dataclasses.replace(usual, highest=9.0)
    for name in ("model", "copy"):
        (tmp_path / name).mkdir()
    assert rates_beside(tmp_path / "model") is None
    write_companions(tmp_path / "model", codec_spec(), rates=rates)
    copy_companions(tmp_path / "model", tmp_path / "copy")
    assert rates_beside(tmp_path / "copy") == rates
    for damaged in ("[]", '{"all": {}, "languages": {}}', '{"all": {"lowest": -1}}', "{}", '{"all": 3}'):
        (tmp_path / "copy" / RATES_FILE).write_text(damaged)
        with pytest.raises(UserError, match="does not hold frames per text token"):
            rates_beside(tmp_path / "copy")
