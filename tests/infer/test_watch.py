"""Speech that will not end: models that miss the end, loop or fall silent, all by construction; and good ones."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import talkative_model

from slmkit.corpora.published import read_published
from slmkit.data.rates import Rate
from slmkit.data.sequence import head_classes
from slmkit.data.shards import Sample
from slmkit.infer.engine import ActiveRequest, Engine
from slmkit.infer.request import Output, Request
from slmkit.infer.sampling import Sampling, seed_of_attempt
from slmkit.infer.watch import (
    LEAST_SEC,
    LENGTH_FACTOR,
    LOOP_SEC,
    LOOP_TIMES,
    RETRY_TEMPERATURE,
    SILENCE_SEC,
    Lookout,
    RepeatCounter,
    Watch,
    silent_tail_sec,
)

FRAME_RATE, GROUP, STREAMS = 80.0, 12, 3
STEP = GROUP // STREAMS  # frames of a step
RATE = Rate(lowest=5.0, median=12.0, high=15.0, highest=18.0)
NUM_TOKENS = 10
MOST = round(LENGTH_FACTOR * RATE.highest * NUM_TOKENS)
NEVER = -1e4

Frame = Sequence[int]
Say = Callable[[int, int], Frame | None]  # (attempt, frame) -> its codes, or None at the end


@functools.cache
def noise(seed: int) -> np.ndarray:
    """Frames [T, K] of random codes without a loop."""
    return np.random.default_rng(seed).integers(0, 16, (4000, STREAMS))


def speaks(seed: int, num_frames: int) -> Say:
    """Speech of a multiple of `STEP` frames, then the end."""
    return lambda attempt, frame: noise(seed)[frame] if frame < num_frames else None


def loops(period: int, seed: int) -> Say:
    """Half a second of speech, then the same `period` frames for ever."""
    return lambda attempt, frame: noise(seed)[frame if frame < 40 else 40 + (frame - 40) % period]


def falls_silent(attempt: int, frame: int) -> Frame:
    """Of no frame twice, but all codes of silence are small."""
    return noise(5)[frame] if frame < 40 else noise(6)[frame] % 4


def silent_sec(codes: np.ndarray) -> float:
    heard = np.flatnonzero((codes >= 4).any(axis=0))
    return (codes.shape[1] - 1 - int(heard[-1]) if len(heard) else codes.shape[1]) / FRAME_RATE


def answers(
    scripts: Sequence[Say],
    monkeypatch: pytest.MonkeyPatch,
    *,
    num_slots: int = 8,
    words: Sequence[int] = (),
    **settings,
) -> list[Output]:
    """What an engine answers whose model begins to speak at once, after `words`, and then says what the script of the
    request wants."""
    model = talkative_model(GROUP)
    engine = Engine(model, num_slots=num_slots, num_positions=400)
    classes, layout = head_classes(GROUP, model.layout.codebook_sizes), model.layout
    num_rows, num_tokens = engine._decoder.num_rows, int(max(engine._ids[0])) + 1

    def lm_logits(part: int) -> torch.Tensor:
        logits = torch.full((num_rows, num_tokens), NEVER)
        for slot, answer in engine._active.items():
            tokens = [*words, layout.id_of("<sosp>")]
            logits[slot, tokens[answer.num_steps] if answer.num_steps < len(tokens) else layout.eos_id] = 0
        return logits

    def head_logits() -> list[torch.Tensor]:
        logits = [torch.full((num_rows, head.size), NEVER) for head in classes]
        for slot, answer in engine._active.items():
            first = len(answer.grammar.frames)
            frames = [scripts[answer.number](len(answer.earlier), first + i) for i in range(STEP)]
            for head in range(GROUP):
                frame = frames[head // STREAMS]
                logits[head][slot, classes[head].eosp if frame is None else int(frame[head % STREAMS])] = 0
        return logits

    monkeypatch.setattr(engine._decoder, "lm_logits", lm_logits)
    monkeypatch.setattr(engine._decoder, "head_logits", head_logits)
    watch = Watch(**{"rate": RATE, "num_tokens": NUM_TOKENS, "silent_sec": silent_sec, **settings})
    return engine.generate([Request(prompt=(1, 2, i), watch=watch, max_sec=7) for i in range(len(scripts))])


def test_whatever_does_not_end_is_stopped_tried_again_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = speaks(0, 4000)
    scripts = [endless, loops(1, 1), loops(2, 2), loops(7, 3), loops(50, 4), falls_silent, speaks(7, 100)]
    *bad, good = answers(scripts, monkeypatch)
    assert [output.limit for output in bad] == ["length", "loop", "loop", "loop", "loop", "silence"]
    for output in bad:
        assert (output.reason, output.attempts, output.runaways) == ("runaway", 3, 3)
        assert not output.is_success
        assert output.codes.shape[1] <= MOST
        assert "stopped by: runaway, " in output.line()
        assert "the best of 3 attempts" in output.line()
    assert [output.codes.shape[1] for output in bad[1:5]] == [
        pytest.approx(40 + period + LOOP_SEC * FRAME_RATE, abs=STEP) for period in (1, 2, 7, 50)
    ]
    assert (good.reason, good.attempts, good.runaways, good.codes.T.tolist()) == ("end", 1, 0, noise(7)[:100].tolist())


def test_without_rates_of_the_corpus_loops_and_silence_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = answers([loops(7, 3), falls_silent, speaks(0, 4000)], monkeypatch, rate=None, max_retries=0)
    assert [(output.reason, output.limit, output.attempts) for output in outputs] == [
        ("runaway", "loop", 1),
        ("runaway", "silence", 1),
        ("limit", "seconds", 1),
    ]


def test_the_best_attempt_is_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ended by itself goes before all others, then the length that the text lets expect."""

    def ends_later(attempt: int, frame: int) -> Frame | None:
        return speaks(1, 160)(attempt, frame) if attempt else loops(2, 1)(attempt, frame)

    def far_and_near(attempt: int, frame: int) -> Frame | None:
        return loops(1, attempt)(attempt, frame + (20 if attempt == 1 else 0))

    def too_short(attempt: int, frame: int) -> Frame | None:
        return speaks(attempt, (12, 16, 8)[attempt])(attempt, frame)

    scripts = [ends_later, far_and_near, too_short]
    later, near, short = answers(scripts, monkeypatch, num_slots=3)
    assert (later.reason, later.attempts, later.runaways, later.codes.shape[1]) == ("end", 2, 1, 160)
    assert later.seed == seed_of_attempt(0, 1) != 0
    assert (near.reason, near.attempts, near.runaways) == ("runaway", 3, 3)
    assert near.codes.T.tolist()[:20] == noise(1)[20:40].tolist()
    assert (short.reason, short.warning, short.attempts, short.runaways) == ("end", "short", 3, 0)
    assert short.codes.shape[1] == 16
    assert not short.is_success
    assert "warning: the speech is far shorter than its text" in short.line()
    (alone,) = answers(scripts[:1], monkeypatch, num_slots=3)
    assert (alone.codes.tolist(), alone.attempts, alone.seed) == (later.codes.tolist(), later.attempts, later.seed)


def test_the_words_of_an_answer_tell_how_long_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    (output,) = answers(
        [speaks(0, 4000)], monkeypatch, words=range(1, 9), num_tokens=None, num_mark_tokens=3, max_retries=0
    )
    assert output.codes.shape[1] == LENGTH_FACTOR * RATE.highest * 5
    (output,) = answers([speaks(0, 4000)], monkeypatch, num_tokens=0, max_retries=0)
    assert output.codes.shape[1] == LEAST_SEC * FRAME_RATE


def test_an_unwatched_answer_and_one_that_may_not_be_tried_again() -> None:
    asked = Request(prompt=(1,), watch=Watch(max_retries=4))
    assert Request(prompt=(1,)).tried_once() == Request(prompt=(1,))
    assert asked.tried_once() == dataclasses.replace(asked, watch=Watch(max_retries=0))


def test_another_attempt_is_the_answer_to_another_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other random numbers, drawn and not greedy; in the same slot, whatever sat there before and beside it."""
    model = talkative_model(GROUP)
    engine = Engine(model, num_slots=3, num_positions=128)
    sosp = torch.full((engine._decoder.num_rows, int(max(engine._ids[0])) + 1), NEVER)
    sosp[:, model.layout.id_of("<sosp>")] = 0
    monkeypatch.setattr(engine._decoder, "lm_logits", lambda part: sosp)
    with torch.no_grad():
        for head, classes in zip(model.heads, head_classes(GROUP, model.layout.codebook_sizes), strict=True):
            head.output.bias[classes.num_codes :] = NEVER

    def in_the_first(self: ActiveRequest) -> str | None:
        return "loop" if not self.earlier and len(self.grammar.frames) > self.number + 4 else None

    monkeypatch.setattr(ActiveRequest, "runaway", in_the_first)
    warm = Sampling(temperature=1.0, top_k=5)
    asked = [Request(prompt=(1, 2, i), seed=i, max_sec=0.3, speech_sampling=warm) for i in range(5)]
    asked[1] = dataclasses.replace(asked[1], speech_sampling=Sampling())
    outputs = engine.generate([dataclasses.replace(request, watch=Watch()) for request in asked])
    asked[1] = dataclasses.replace(asked[1], speech_sampling=Sampling(temperature=RETRY_TEMPERATURE))
    others = [dataclasses.replace(request, seed=seed_of_attempt(request.seed, 1)) for request in asked]
    assert {request.seed for request in others}.isdisjoint(range(5))
    monkeypatch.undo()
    monkeypatch.setattr(engine._decoder, "lm_logits", lambda part: sosp)
    for output, other in zip(outputs, engine.generate(others), strict=True):
        assert (output.attempts, output.runaways, output.limit) == (2, 1, "seconds")
        assert output.codes.tolist() == other.codes.tolist()
    assert len({output.codes.tobytes() for output in outputs}) == 5


def watched(codes: np.ndarray) -> str | None:
    """What the watch says of codes [K, T], frame by frame; a text of the median rate is assumed."""
    lookout = Lookout(Watch(rate=RATE, num_tokens=round(codes.shape[1] / RATE.median)), FRAME_RATE)
    frames = codes.T.tolist()
    return next(filter(None, (lookout.look(frames[:end], 0) for end in range(1, len(frames) + 1))), None)


def test_good_speech_is_left_alone(demo_dir: Path) -> None:
    """People who read, and 500 streams with the codes of their speech, each held as long as there."""
    samples = [item for item in read_published(demo_dir / "ntp.jsonl") if isinstance(item, Sample)]
    assert len(samples) == 10
    assert {watched(sample.codes) for sample in samples} == {None}
    runs = []
    for stream in np.concatenate([sample.codes for sample in samples], axis=1):
        starts = np.flatnonzero(np.diff(stream, prepend=-1))
        runs.append((stream[starts], np.diff(starts, append=len(stream))))
    rng = np.random.default_rng(0)
    for _ in range(500):
        num_frames = int(rng.integers(40, 320))
        drawn = [rng.integers(0, len(codes), num_frames) for codes, _ in runs]
        made = [np.repeat(c[i], held[i])[:num_frames] for (c, held), i in zip(runs, drawn, strict=True)]
        assert watched(np.array(made)) is None


def test_a_loop_has_three_turns_and_lasts_three_seconds() -> None:
    def noticed(period: int, odd: int = 0) -> int | None:
        """The frame at which a loop from the first frame on is seen; every `odd`th frame is another one."""
        counter, frames = RepeatCounter(FRAME_RATE), noise(period)
        for i in range(1500):
            if counter.add([99, i, 0] if odd and i % odd == odd - 1 else frames[i % period]):
                return i + 1
        return None

    for period in (1, 3, 80, 200):
        turns = max(LOOP_SEC * FRAME_RATE, (LOOP_TIMES - 1) * period)
        assert noticed(period) == period + turns
    assert noticed(1500) is None
    assert noticed(2, odd=41) is not None
    assert noticed(2, odd=5) is None


def test_silence_is_what_stays_far_below_the_loudest() -> None:
    rng, rate = np.random.default_rng(0), 1000
    loud, quiet = (level * rng.standard_normal(2 * rate).astype(np.float32) for level in (0.1, 0.0005))
    assert silent_tail_sec(np.concatenate([loud, quiet]), rate) == pytest.approx(2, abs=0.1)
    assert silent_tail_sec(np.concatenate([quiet, loud]), rate) == 0
    assert silent_tail_sec(0.05 * loud, rate) == 0  # quiet speech is speech
    assert silent_tail_sec(quiet, rate) == 2
    assert silent_tail_sec(np.full(rate, np.nan, np.float32), rate) == silent_tail_sec(quiet[:0], rate) == 0
    assert SILENCE_SEC > 2
