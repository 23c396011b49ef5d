"""Long audio takes memory for itself and its codes, and beyond that for some pieces of it alone.

`slmkit bench memory` measures whole commands with codecs of any size.
"""

import itertools

import pytest
import torch
from codec.families import audio, family_directory, family_names
from torch.profiler import ProfilerActivity, profile

from slmkit.codec.open import open_codec
from slmkit.codec.single import SingleCodec
from slmkit.codec.speechtokenizer import network

PIECE_SEC, CONTEXT_SEC = 0.5, 0.5
SHORT_SEC, LONG_SEC = 3.0, 6.0
CODE_BYTES = 4 + 8 + 8  # those that are returned, those of all pieces, and those joined
SAMPLE_BYTES = 4 + 4 + 4  # in the same way
WHOLE_DECODERS = ("wavtokenizer", "xcodec2")  # which look at the whole utterance


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and contexts as short as a test has to have them."""
    monkeypatch.setattr(SingleCodec, "piece_frames", property(lambda codec: round(PIECE_SEC * codec.spec.frame_rate)))
    monkeypatch.setattr("slmkit.codec.hf.xcodec.CONTEXT_SEC", CONTEXT_SEC)
    monkeypatch.setattr("slmkit.codec.hf.xcodec2.CONTEXT_SEC", CONTEXT_SEC)
    monkeypatch.setattr(network, "PIECE", 25)
    monkeypatch.setattr(network, "WHOLE_FRAMES", 50)
    monkeypatch.setattr(network, "CONTEXT_FRAMES", 25)


def peak_bytes(work) -> int:
    """Most bytes of tensors that are there at once while `work` runs, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events, "this torch counts no memory"
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.full
@pytest.mark.parametrize("name", family_names())
def test_longer_audio_takes_more_memory_for_itself_alone(name: str, short_pieces: None) -> None:
    codec = open_codec(family_directory(name))
    spec, voice = codec.spec, torch.zeros(1, 0)
    waves = [audio(spec.sample_rate, seconds)[None] for seconds in (SHORT_SEC, LONG_SEC)]
    counts = [torch.tensor([wave.shape[1]]) for wave in waves]
    codes = [codec.encode(*pair).codes for pair in zip(waves, counts, strict=True)]
    more_frames = codes[1].shape[2] - codes[0].shape[2]
    encoding = [peak_bytes(lambda pair=pair: codec.encode(*pair)) for pair in zip(waves, counts, strict=True)]
    assert encoding[1] - encoding[0] <= CODE_BYTES * len(spec.streams) * more_frames
    if name in WHOLE_DECODERS:
        return
    decoding = [peak_bytes(lambda some=some: codec.decode(some, voice)) for some in codes]
    allowed = CODE_BYTES * len(spec.streams) * more_frames + SAMPLE_BYTES * spec.hop_samples * more_frames
    assert decoding[1] - decoding[0] <= allowed
