"""Batches by length: each position once, within the budget; checks beside each sample."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tiny_codec import TinyCodec

from slmkit.corpora.base import Audio, Utterance
from slmkit.tokenization.decode import Decoded
from slmkit.tokenization.encode import batches, encode_in_order


@given(lengths=st.lists(st.integers(1, 50), max_size=40), budget=st.integers(1, 200))
def test_every_position_is_in_one_batch_within_the_budget(lengths, budget):
    groups = batches(lengths, budget)
    assert sorted(position for group in groups for position in group) == list(range(len(lengths)))
    for group in groups:
        assert group
        assert len(group) == 1 or max(lengths[i] for i in group) * len(group) <= budget


def test_like_lengths_go_together():
    assert batches([30, 10, 20], budget=40) == [[1, 2], [0]]
    assert batches([], budget=40) == []


def test_checks_of_decoding_and_the_frames_too_many_stand_beside_each_sample():
    utterance = Utterance(key="a", audio=Audio("a"), text="x", source="a", extra={"dnsmos": 3.1})
    waves = [np.full(samples, 0.1, np.float32) for samples in (1000, 1199, 850)]  # a frame is 200 samples
    decoded = [Decoded(utterance, "x", wave, {"clipped": 0.25}) for wave in waves]
    samples = list(encode_in_order(TinyCodec(), decoded, window=2, batch_samples=5000))
    assert [sample.meta["checks"] for sample in samples] == [
        {"clipped": 0.25, "frames_off": frames_off} for frames_off in (0.0, -0.995, -0.25)
    ]
    assert samples[0].meta["dnsmos"] == 3.1
    assert "-0.0" not in json.dumps(samples[0].meta)
