"""Real FACodec codes of people reading (the published demo data): learnt and spoken again exactly, in every mode."""

from pathlib import Path

import numpy as np
import pytest
from memorising import BASE, memorise, one_batch, small_model
from twins.generate import generate, prompt_example

from slmkit.corpora.published import SPEC, read_published
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer

FILES = {0: "ntp.jsonl", 3: "mtp_h3.jsonl", 6: "mtp_h6.jsonl", 12: "mtp_h12.jsonl"}


@pytest.mark.full
@pytest.mark.parametrize("group", FILES)
def test_three_utterances_come_out_exactly(group: int, demo_dir: Path) -> None:
    tokenizer = TextTokenizer.load(BASE)
    samples = [item for item in read_published(demo_dir / FILES[group]) if isinstance(item, Sample)]
    assert len(samples) == 10
    samples = sorted(samples, key=lambda sample: sample.codes.shape[1])[:3]
    model = small_model(tokenizer, SPEC, group, hidden_size=128, num_layers=4)
    memorise(model, one_batch(model, tokenizer, samples))
    for sample in samples:
        start = prompt_example(tokenizer, model.layout, sample.meta["text"], group=group, speaker=False)
        out = generate(model, start)
        assert out.stop == "end"
        assert np.array_equal(out.codes, sample.codes)
