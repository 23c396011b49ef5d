"""Which samples are on which side of a split."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import codec_spec, write_voices

from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.index import Corpus
from slmkit.data.sources import of_corpus
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import base_layout

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"
NUM_SAMPLES, NUM_VOICES = 60, 7
VOICES = [f"v{i}" for i in range(NUM_VOICES)]
Opened = Callable[[int], TrainingData]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """The first samples of a corpus of seven voices."""
    corpus = Corpus.open(write_voices(tmp_path_factory.mktemp("voices"), NUM_SAMPLES, NUM_VOICES))
    tokenizer = TextTokenizer.load(BASE)
    layout, form = base_layout(tokenizer, codec_spec(), 3), ExampleFormat(task="tts", group=3)
    cache = tmp_path_factory.mktemp("cache")
    source = of_corpus(corpus)
    return lambda count: TrainingData.open(source, tokenizer, layout, form, cache_dir=cache, max_samples=count)


def voices_by_key(data: TrainingData) -> dict[str, str]:
    numbers = [number for _, number in data.locate(np.arange(len(data)))]
    reader = data.parts[0].source.reader
    return {data.key(i): reader.read_meta(number)["speaker"] for i, number in enumerate(numbers)}


@given(
    count=st.integers(NUM_VOICES, NUM_SAMPLES),
    excluded=st.sets(st.sampled_from(VOICES), max_size=3),
    held_out=st.sets(st.sampled_from(VOICES), max_size=3),
    share=st.sampled_from([0.0, 0.3]),
)
def test_every_sample_is_on_one_side_by_its_voice(
    opened: Opened, count: int, excluded: set[str], held_out: set[str], share: float
) -> None:
    """Whatever else is chosen, and in whichever order; an epoch then sees exactly the side that is trained on."""
    everything = opened(count)
    others, theirs = everything.split_speakers(sorted(excluded, reverse=True))
    rest, shared = others.split(share)
    trained, kept = rest.split_speakers([v for v in VOICES if v in held_out and v in set(voices_by_key(rest).values())])
    sides = [voices_by_key(data) for data in (theirs, shared, kept, trained)]
    assert {key: voice for side in sides for key, voice in side.items()} == voices_by_key(everything)
    assert sum(map(len, sides)) == count
    assert set(sides[0].values()) == excluded
    assert not (excluded | held_out) & set(sides[3].values())
    if len(trained):
        windows = trained.plan(seed=1, row_tokens=300).windows(0)
        rows = [window.row(number) for window in windows for number in range(window.num_rows)]
        assert sorted(np.concatenate(rows).tolist()) == list(range(len(trained)))
