"""Answers heard while they are decoded: the codes of a batch, in time; the engine is free again whatever happens."""

import functools
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from slmkit.bench.decode import FRAME_RATE, QUICK, make_model, make_prompts
from slmkit.codec.base import CodecSpec, Reach, Stream
from slmkit.errors import UserError
from slmkit.infer.engine import Engine
from slmkit.infer.passage import Passage
from slmkit.infer.request import Output, Request
from slmkit.infer.stream import Speaking, SpeechStream

GROUPS = (0, 2, 3, 4, 6, 12)
NUM_SLOTS = 3
NUM_FRAMES = 41
VOICE = np.zeros(1, dtype=np.float32)


class Spelling:
    """The wave of a frame is its three codes; it says that they are not certain before three more frames are there."""

    spec = CodecSpec(
        name="spelling",
        sample_rate=3 * FRAME_RATE,
        hop_samples=3,
        streams=tuple(Stream(f"stream_{i}", QUICK.codebook, "coupled") for i in range(3)),
        speaker_dim=1,
        weights_sha256="",
    )
    device = torch.device("cpu")
    reach_frames = Reach(2, 3)

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        return codes.transpose(1, 2).flatten(1) + speaker


@functools.cache
def engine(group: int) -> Engine:
    """Of a model that begins to speak at once and does not stop."""
    return Engine(make_model(QUICK, group, NUM_SLOTS), num_slots=NUM_SLOTS, num_positions=512)


def requests(num_frames: int = NUM_FRAMES) -> list[Request]:
    return [Request(prompt=prompt, max_sec=(num_frames + 0.5) / FRAME_RATE) for prompt in make_prompts(NUM_SLOTS)]


def spelt(wave: np.ndarray) -> np.ndarray:
    return wave.astype(np.uint16).reshape(-1, 3).T


@pytest.mark.parametrize("group", GROUPS)
def test_streamed_codes_are_those_of_a_batch(group: int) -> None:
    for request, output in zip(requests(), engine(group).generate(requests()), strict=True):
        speaking = Speaking(engine(group), Spelling(), Passage.of("", request), VOICE)
        assert (speaking.output, speaking.first_audio_sec) == (None, None)
        pieces = [next(speaking)]
        assert speaking.output is None
        assert 0 < speaking.first_audio_sec < 60
        pieces += speaking
        assert [len(piece) // 3 for piece in pieces] == [12, 13, NUM_FRAMES - 25]
        assert np.array_equal(spelt(np.concatenate(pieces)), output.codes)
        assert speaking.output.num_steps == output.num_steps
        assert (speaking.output.reason, speaking.output.limit) == ("limit", "seconds")
        assert engine(group).num_free == NUM_SLOTS


@pytest.mark.parametrize("group", GROUPS)
def test_sound_comes_as_soon_as_the_frames_are_certain(group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[list] = []
    step = engine(group).step
    monkeypatch.setattr(engine(group), "step", lambda: (steps.append([]), step())[1])
    with_speech = Speaking(engine(group), Spelling(), Passage.of("", requests()[0]), VOICE)
    next(with_speech)
    with_speech.close()
    assert len(steps) == 1 + (-(-15 * 3 // group) if group else 15 * 3)  # `<sosp>`, then 12 frames and 3 more


def test_streams_of_a_full_engine_are_heard_side_by_side() -> None:
    """As a server does it: one engine, several answers, a stream for each."""
    expected, busy = engine(6).generate(requests()), engine(6)
    streams = [SpeechStream(Spelling(), VOICE) for _ in expected]
    heard: list[list[np.ndarray]] = [[] for _ in expected]
    for number, request in enumerate(requests()):
        busy.admit(request, number)
    outputs: dict[int, Output] = {}
    while len(outputs) < NUM_SLOTS:
        outputs |= busy.step()
        for number, stream in enumerate(streams):
            if number not in outputs:
                heard[number].append(stream.push(busy.frames(number, first=stream.num_frames)))
    for stream, output, pieces, wanted in zip(streams, (outputs[i] for i in range(3)), heard, expected, strict=True):
        pieces += [stream.push(output.codes[:, stream.num_frames :]), stream.finish()]
        assert np.array_equal(spelt(np.concatenate(pieces)), wanted.codes)


def test_an_answer_without_speech_is_named() -> None:
    (request, *_), mute = requests(), make_model(QUICK, 3, 1)
    with torch.no_grad():
        mute.lm_model.lm_head.weight[mute.layout.id_of("<sosp>")] *= -1
    silent = Engine(mute, num_slots=1)
    speaking = Speaking(silent, Spelling(), Passage.of("", Request(prompt=request.prompt, max_text_tokens=3)), VOICE)
    with pytest.raises(UserError, match=r"the model gave no speech \(it stopped by: text_tokens\)"):
        next(speaking)
    assert (speaking.output.limit, speaking.first_audio_sec, silent.num_free) == ("text_tokens", None, 1)


def test_fewer_frames_than_the_first_piece_are_heard_at_the_end() -> None:
    speaking = Speaking(engine(12), Spelling(), Passage.of("", requests(4)[0]), VOICE)
    (wave,) = speaking
    assert np.array_equal(spelt(wave), speaking.output.codes)
    assert speaking.first_audio_sec > 0


@pytest.mark.parametrize("leave", [lambda speaking: speaking.close(), lambda speaking: None])
def test_an_answer_left_early_frees_the_engine(leave: Callable[[Speaking], None]) -> None:
    speaking = Speaking(engine(3), Spelling(), Passage.of("", requests()[0]), VOICE)
    next(speaking)
    assert engine(3).num_free == NUM_SLOTS - 1
    with pytest.raises(UserError, match="the engine is busy with other requests"):
        next(Speaking(engine(3), Spelling(), Passage.of("", requests()[0]), VOICE))
    leave(speaking)
    del speaking
    assert engine(3).num_free == NUM_SLOTS
    assert (
        len(list(itertools.chain(*Speaking(engine(3), Spelling(), Passage.of("", requests()[0]), VOICE))))
        == 3 * NUM_FRAMES
    )


def test_a_codec_that_fails_frees_the_engine() -> None:
    class Broken(Spelling):
        def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        next(Speaking(engine(3), Broken(), Passage.of("", requests()[0]), VOICE))
    assert engine(3).num_free == NUM_SLOTS


def test_a_sound_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match="the codec made a sound that is not finite"):
        next(Speaking(engine(3), Spelling(), Passage.of("", requests()[0]), np.full(1, np.inf, np.float32)))
    assert engine(3).num_free == NUM_SLOTS


def test_a_request_that_does_not_fit_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="the prompt is empty"):
        Speaking(engine(3), Spelling(), Passage.of("", Request(prompt=())), VOICE)
