"""Batched decoding against the plain loop and teacher forcing; a request alone and in any company."""

import functools

import numpy as np
import pytest
import torch
from tiny_models import BASE_SIZE, talkative_model, tiny_model
from transformers import DynamicCache
from twins.generate import Limits, allowed_classes, generate, head_logits, masked_classes

from slmkit.errors import UserError
from slmkit.infer.decoder import SlotDecoder
from slmkit.infer.engine import DEFAULT_SEC, ActiveRequest, Engine, positions_for
from slmkit.infer.grammar import make_grammar
from slmkit.infer.request import MAX_SEED, Output, Request, from_ids
from slmkit.infer.rows import rows_needed
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

KINDS = [
    (0, {}),
    (0, {"softmax": "stream", "speaker_dim": 8}),
    (3, {"head": "linear", "speaker_dim": 8}),
    (3, {"head": "transformer", "fusion": "mlp"}),
    (6, {"head": "mlp", "fusion": "mlp", "speaker_dim": 8}),
    (6, {"head": "transformer"}),
    (12, {"head": "linear", "fusion": "mlp"}),
    (12, {"head": "mlp"}),
    (0, {"arch": "qwen3"}),
    (3, {"arch": "llama", "head": "transformer", "speaker_dim": 8}),
    (0, {"arch": "smollm3"}),
    (6, {"arch": "smollm3", "head": "transformer"}),
    (4, {"head": "linear", "sizes": (16, 5, 9), "speaker_dim": 8}),
    (3, {"head": "transformer", "sizes": (8,) * 8}),
    (12, {"head": "linear", "sizes": (16,), "fusion": "mlp"}),
]
CHEAP = [0, 2, 8, 12]  # of KINDS, for the default run: both ways of writing speech, two architectures, phases
ALL = [kind if kind in CHEAP else pytest.param(kind, marks=pytest.mark.full) for kind in range(len(KINDS))]
NUM_SLOTS = 5  # of which MKL, with two threads, rounds some rows otherwise


@functools.cache
def talkative(kind: int) -> SpeechLM:
    group, options = KINDS[kind]
    return talkative_model(group, **options)


@functools.cache
def engine(kind: int) -> Engine:
    return Engine(talkative(kind), num_slots=NUM_SLOTS, num_positions=128)


def request(model: SpeechLM, rng: np.random.Generator, **settings) -> Request:
    ids = rng.integers(0, BASE_SIZE - 2, rng.integers(1, 16)).tolist()
    speaker = None
    if model.config.speaker_dim:
        ids.insert(int(rng.integers(0, len(ids) + 1)), model.layout.id_of("<|placeholder|>"))
        speaker = torch.from_numpy(rng.standard_normal(8).astype(np.float32))
    return Request(prompt=tuple(ids), speaker=speaker, **settings)


def random_request(model: SpeechLM, rng: np.random.Generator) -> Request:
    def sampling() -> Sampling:
        return Sampling(
            temperature=float(rng.choice([0, 0.7, 1.3])),
            top_k=int(rng.choice([0, 1, 6])),
            top_p=float(rng.choice([1, 0.8])),
            repetition_penalty=float(rng.choice([1, 1.4, 0.9])),
            repetition_window=int(rng.integers(1, 6)),
        )

    return request(
        model,
        rng,
        text_sampling=sampling(),
        speech_sampling=sampling(),
        seed=int(rng.integers(0, 2**63)),
        max_sec=float(rng.choice([0.01, 0.04, 0.3])),
        max_text_tokens=int(rng.integers(1, 20)),
        max_steps=int(rng.integers(1, 14 if model.group else 30)),
    )


def told(output: Output) -> tuple:
    return output.codes.tolist(), output.text_ids, output.num_steps, output.reason, output.limit


@pytest.mark.parametrize("kind", ALL)
def test_batched_greedy_is_the_plain_loop(kind: int) -> None:
    model, rng = talkative(kind), np.random.default_rng(kind)
    requests = [request(model, rng, max_sec=0.15, max_text_tokens=24) for _ in range(6)]
    outputs = engine(kind).generate(requests)
    for asked, output in zip(requests, outputs, strict=True):
        start = from_ids(asked.prompt, model.layout, model.group)
        plain = generate(model, start, speaker=asked.speaker, limits=Limits(max_frames=12, max_text_tokens=24))
        assert np.array_equal(output.codes, plain.codes)
        assert (output.text_ids, output.num_steps) == (plain.text_ids, plain.num_steps)
        expected = {"end": None, "speech_limit": "seconds", "text_limit": "text_tokens"}
        assert output.limit == expected[plain.stop]
    assert sum(output.codes.shape[1] for output in outputs) > 0


@pytest.mark.parametrize("kind", ALL)
def test_batched_greedy_is_what_teacher_forcing_predicts(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All positions at once, without a cache: each step's choice is the best allowed one after those before it."""
    model, rng, fresh = talkative(kind), np.random.default_rng(kind + 52), Engine(talkative(kind), num_slots=3)
    requests = [request(model, rng, max_steps=24) for _ in range(3)]
    seen: list[dict] = []
    advance = fresh._decoder.advance
    monkeypatch.setattr(fresh._decoder, "advance", lambda positions: (seen.append(positions), advance(positions)))
    fresh.generate(requests)
    for slot, asked in enumerate(requests):
        start = from_ids(asked.prompt, model.layout, model.group)
        steps = [positions[slot] for positions in seen if slot in positions]
        tokens = torch.cat([torch.from_numpy(start.tokens), torch.tensor([ids for ids, _ in steps])])
        mask = torch.tensor([False] * len(start.tokens) + [spoken for _, spoken in steps])
        places = torch.from_numpy(start.speaker_positions)
        speaker = None if asked.speaker is None else asked.speaker[None]
        with torch.inference_mode():
            embedded = model.embed(tokens, mask, speaker, places)[None]
            where = torch.arange(len(tokens))[None]
            cache = DynamicCache()
            hidden = model.hidden(embedded, where, cache=cache)
            heads = head_logits(model, hidden, where, cache=cache)
            vocabulary = model.lm_model.lm_head(hidden)[0]
        grammar, said = make_grammar(model.layout, model.group), 0
        for step, (ids, spoken) in enumerate(steps):
            at = len(start.tokens) - 1 + step
            if spoken and model.group:
                phase = said * model.group % model.layout.num_streams
                allowed = [allowed_classes(model.layout, model.group, phase, head) for head in range(model.group)]
                chosen = [int(masked_classes(head[0, at], allowed[i]).argmax()) for i, head in enumerate(heads)]
            else:
                allowed = grammar.allowed(grammar.state)
                chosen = [allowed[int(vocabulary[at, allowed].argmax())]]
            if spoken:
                assert grammar.accept_speech(chosen) == list(ids)
                said = said + 1 if grammar.mode == "speech" else 0
            else:
                grammar.accept_text(chosen[0])
                assert chosen[0] == ids[0]
    assert sum(spoken for positions in seen for _, spoken in positions.values()) >= 5


@pytest.mark.parametrize("kind", ALL)
def test_alone_and_in_random_batches_the_same_tokens(kind: int) -> None:
    """Fifty requests of each size and architecture."""
    model, rng = talkative(kind), np.random.default_rng(kind + 100)
    requests = [random_request(model, rng) for _ in range(50)]
    alone = [told(engine(kind).generate([asked])[0]) for asked in requests]
    together = engine(kind).generate(requests)
    assert [told(output) for output in together] == alone
    order = rng.permutation(50)
    shuffled = engine(kind).generate([requests[i] for i in order])
    assert [told(output) for output in shuffled] == [alone[i] for i in order]
    assert {limit for *_, limit in alone} >= {"seconds", "text_tokens", "steps"}
    assert len({str(one) for one in alone}) > 25
    assert sum(output.codes.shape[1] for output in together) > 0


@pytest.mark.parametrize("kind", ALL)
def test_attending_together_gives_the_same_tokens(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a GPU, without its graph: all slots at once, over memory that earlier answers have used."""
    model, rng = talkative(kind), np.random.default_rng(kind + 200)
    requests = [random_request(model, rng) for _ in range(12)]
    always_together = functools.partial(SlotDecoder, together=True)
    monkeypatch.setitem(Engine.__init__.__globals__, "SlotDecoder", always_together)
    masked = Engine(model, num_slots=NUM_SLOTS, num_positions=128)
    apart = [told(output) for output in engine(kind).generate(requests)]
    assert [told(output) for output in masked.generate(requests)] == apart
    assert [told(output) for output in masked.generate(requests[::-1])] == apart[::-1]
    assert len({str(one) for one in apart}) > 6


@pytest.mark.parametrize("kind", [4, *(pytest.param(kind, marks=pytest.mark.full) for kind in (8, 9)), 11])
@pytest.mark.parametrize(("threads", "num_slots"), [(1, 3), (2, 5)])
def test_a_slot_computes_the_same_bits_as_any_other(threads: int, num_slots: int, kind: int) -> None:
    """Hidden states and logits of one request in each slot, the others busy with something else."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, rng = talkative(kind), np.random.default_rng(num_slots)
        ours, *others = (request(model, rng, max_steps=3) for _ in range(num_slots + 3))
        bits = set()
        for slot in (0, num_slots // 2, num_slots - 1):
            fresh = Engine(model, num_slots=num_slots, num_positions=128)
            for number in range(num_slots):
                asked = ours if number == slot else others[(number + slot) % len(others)]
                fresh.admit(asked, number)
            fresh.step()
            fresh.step()
            with torch.inference_mode():
                state = [fresh._decoder._hidden[slot], *(head[slot] for head in fresh._decoder.head_logits())]
            bits.add(torch.cat(state).numpy().tobytes())
        assert len(bits) == 1
    finally:
        torch.set_num_threads(before)


def test_outputs_come_as_they_are_done_and_requests_as_there_is_room() -> None:
    model, rng, taken = talkative(2), np.random.default_rng(0), []

    def queue():
        for i in range(12):
            taken.append(i)
            yield request(model, rng, max_steps=1 + i % 4)

    first, _ = next(running := engine(2).run(queue()))
    assert first == 0
    assert len(taken) == NUM_SLOTS
    assert sorted([first, *(number for number, _ in running)]) == list(range(12))
    assert engine(2).num_free == NUM_SLOTS


def test_frames_can_be_taken_while_an_answer_runs() -> None:
    model, rng = talkative(4), np.random.default_rng(4)
    requests = [request(model, rng, max_sec=0.15) for _ in range(3)]
    busy, outputs = Engine(model, num_slots=3, num_positions=128), {}
    taken: list[np.ndarray] = [np.zeros((3, 0), np.uint16)] * 3
    for number, asked in enumerate(requests):
        busy.admit(asked, number)
    while busy.num_free < 3:
        outputs |= dict(busy.step())
        for number in set(range(3)) - set(outputs):
            taken[number] = np.hstack([taken[number], busy.frames(number, taken[number].shape[1])])
    assert sum(codes.shape[1] for codes in taken) > 0
    for number, codes in enumerate(taken):
        assert np.array_equal(outputs[number].codes[:, : codes.shape[1]], codes)
        assert outputs[number].codes.shape[1] - codes.shape[1] <= 2  # what the last step brought


def test_an_answer_that_is_given_up_leaves_its_slot_and_the_others_alone() -> None:
    model, rng = talkative(0), np.random.default_rng(5)
    first, second, third = (request(model, rng, max_steps=12) for _ in range(3))
    busy, outputs = Engine(model, num_slots=2, num_positions=128), {}
    busy.admit(first, 7)
    busy.admit(second, 8)
    busy.step()
    busy.cancel(7)
    assert busy.num_free == 1
    busy.admit(third, 9)
    while busy.num_free < 2:
        outputs |= dict(busy.step())
    assert told(outputs[8]) == told(busy.generate([second])[0])
    assert told(outputs[9]) == told(busy.generate([third])[0])
    for gone in (7, 8):
        with pytest.raises(KeyError):
            busy.cancel(gone)
        with pytest.raises(KeyError):
            busy.frames(gone)


def test_every_limit_says_so() -> None:
    model, rng = talkative(0), np.random.default_rng(1)
    asked = request(model, rng, max_steps=6)
    assert told(engine(0).generate([asked])[0])[2:] == (6, "limit", "steps")
    roomy = request(model, rng, max_text_tokens=500, max_sec=60)
    cramped = Engine(model, num_slots=1, num_positions=40).generate([roomy])[0]
    assert (cramped.reason, cramped.limit) == ("limit", "positions")
    assert cramped.num_steps == 40 - len(roomy.prompt) + 1


def test_an_answer_that_ends_by_itself_says_so() -> None:
    model = tiny_model(3, backbone={"tie_word_embeddings": False}).eval()
    with torch.no_grad():
        model.lm_model.lm_head.weight[model.layout.eos_id] *= 20
    outputs = Engine(model, num_slots=2).generate([Request(prompt=(1, 2, i), max_text_tokens=99) for i in range(6)])
    assert {(output.reason, output.limit) for output in outputs} == {("end", None)}


def test_penalty_forbids_what_was_said_lately() -> None:
    """With a penalty that outweighs all, no code of a stream comes back within the window."""
    model, rng = talkative(2), np.random.default_rng(2)
    harsh = Sampling(repetition_penalty=1e6, repetition_window=6)
    free = request(model, rng, max_sec=0.25, max_text_tokens=60)
    bound = Request(prompt=free.prompt, speaker=free.speaker, speech_sampling=harsh, max_sec=0.25, max_text_tokens=60)
    loose, strict = (output.codes for output in engine(2).generate([free, bound]))
    assert any(repeats(stream, 6) for stream in loose)
    assert strict.shape[1] > 6
    assert not any(repeats(stream, 6) for stream in strict)


def test_the_penalty_sees_the_frame_that_is_not_whole_yet() -> None:
    layout = talkative(12).layout
    grammar = make_grammar(layout, 4)
    grammar.accept_text(layout.id_of("<sosp>"))
    asked = Request(prompt=(1,), speech_sampling=Sampling(repetition_penalty=2.0, repetition_window=2))
    answer = ActiveRequest(asked, 0, grammar, frame_rate=80.0)
    for step, lately in (
        ([1, 2, 3, 4], [[2], [3], [1, 4], [2]]),  # next are b1 c1 a2 b2
        ([0, 5, 6, 3], [[3, 5], [4, 6], [0, 3], [3, 5]]),  # c2 a3 b3 c3
    ):
        grammar.accept_speech(step)
        assert [choice.lately for choice in answer.rows(4, is_grouped=True)] == lately


def repeats(stream: np.ndarray, window: int) -> bool:
    return any(code in stream[max(0, i - window) : i] for i, code in enumerate(stream))


BAD_REQUESTS = [
    (2, {"prompt": ()}, "the prompt is empty"),
    (2, {"prompt": (1, 999)}, "tokens that are not in the vocabulary"),
    (2, {"prompt": (-1,)}, "tokens that are not in the vocabulary"),
    (2, {"prompt": (1,) * 128}, "the prompt leaves no room for an answer"),
    (2, {"prompt": (1, 42)}, "a place for a speaker vector and none was given"),
    (2, {"prompt": (1, 43), "speaker": torch.zeros(7)}, "the speaker vector has another width"),
    (2, {"prompt": (1, 43), "speaker": torch.full((8,), torch.nan)}, "numbers that are not finite"),
    (2, {"prompt": (1, 2), "speaker": torch.zeros(8)}, "the prompt has no place for it"),
    (0, {"prompt": (1, 2), "speaker": torch.zeros(8)}, "a model without speaker input"),
]


@pytest.mark.parametrize(("kind", "fields", "message"), BAD_REQUESTS)
def test_requests_that_do_not_fit_are_named_and_the_next_works(kind: int, fields: dict, message: str) -> None:
    model = talkative(kind)
    slot = model.layout.id_of("<|placeholder|>")
    prompt = tuple(slot if i in (42, 43) else i for i in fields["prompt"])
    bad, good = Request(**{**fields, "prompt": prompt}), request(model, np.random.default_rng(0), max_steps=3)
    with pytest.raises(UserError, match=message):
        list(engine(kind).run([good, bad]))
    with pytest.raises(UserError, match=message):
        engine(kind).generate([good, bad])
    assert engine(kind).generate([good])[0].num_steps <= 3


@pytest.mark.parametrize("kind", CHEAP[:2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_end_their_request_alone(
    kind: int, value: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the fourth step on all logits of the slot are NaN, as with damaged weights; draws are sampled."""
    model, rng, broken = talkative(kind), np.random.default_rng(8), 1
    sampling = Sampling(temperature=1.0)
    sampled = {"text_sampling": sampling, "speech_sampling": sampling, "max_steps": 12}
    requests = [request(model, rng, seed=seed, **sampled) for seed in range(3)]
    expected = engine(kind).generate(requests)
    fresh, num_steps = Engine(model, num_slots=NUM_SLOTS, num_positions=128), 0
    decoder, advance = fresh._decoder, fresh._decoder.advance

    def counted(positions: dict) -> None:
        nonlocal num_steps
        num_steps += 1
        advance(positions)

    def damaged(logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        if num_steps >= 4:
            logits[broken] = value
        return logits

    lm_logits, head_logits = decoder.lm_logits, decoder.head_logits
    monkeypatch.setattr(decoder, "advance", counted)
    monkeypatch.setattr(decoder, "lm_logits", lambda state: damaged(lm_logits(state)))
    monkeypatch.setattr(decoder, "head_logits", lambda: [damaged(logits) for logits in head_logits()])
    outputs = fresh.generate(requests)
    assert [told(outputs[i]) for i in (0, 2)] == [told(expected[i]) for i in (0, 2)]
    assert (outputs[broken].reason, outputs[broken].limit, outputs[broken].num_steps) == ("limit", "not_finite", 4)
    assert outputs[broken].codes.tolist() == expected[broken].codes[:, : outputs[broken].codes.shape[1]].tolist()


@pytest.mark.parametrize("together", [False, True])
def test_what_an_answer_that_was_not_finite_leaves_behind_touches_no_other(
    together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of its slot, which a mask does not hide where all slots attend at once."""
    model, rng = talkative(2), np.random.default_rng(3)
    requests = [request(model, rng, max_steps=20) for _ in range(3)]
    monkeypatch.setitem(Engine.__init__.__globals__, "SlotDecoder", functools.partial(SlotDecoder, together=together))
    fresh = Engine(model, num_slots=2, num_positions=128)
    expected = [told(output) for output in fresh.generate(requests)]
    cache = fresh._decoder._cache
    for memory in (*cache._keys, *cache._values):
        memory.fill_(torch.nan)
    assert [told(output) for output in fresh.generate(requests)] == expected
    assert {limit for *_, limit in expected} == {"steps"}


def test_a_prompt_of_another_group_is_refused() -> None:
    start = from_ids((1, 2), talkative(2).layout, 6)
    with pytest.raises(UserError, match="the prompt was made for another model"):
        engine(2).check(Request(prompt=start))


@pytest.mark.parametrize(
    "field",
    [
        {"max_sec": 0},
        {"max_sec": float("nan")},
        {"max_sec": float("inf")},
        {"max_sec": 1e300},
        {"max_text_tokens": 0},
        {"max_steps": 0},
        {"seed": -1},
        {"seed": MAX_SEED + 1},
    ],
)
def test_settings_out_of_range_are_refused(field: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(field))}: got"):
        Request(prompt=(1,), **field)


def test_the_default_room_is_that_of_half_a_minute() -> None:
    for kind, steps_per_sec in ((0, 240), (2, 80), (4, 40), (6, 20)):
        model = talkative(kind)
        assert Engine(model, num_slots=1).num_positions == 1024 + DEFAULT_SEC * steps_per_sec
        assert positions_for(model, 2.0) == 1024 + 2 * steps_per_sec
    assert positions_for(tiny_model(0, backbone={"max_position_embeddings": 500})) == 500


def test_engines_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="the engine has no slots"):
        Engine(talkative(0), num_slots=0)
    with pytest.raises(UserError, match="the positions do not fit the backbone"):
        Engine(talkative(0), num_positions=10**9)
    busy = Engine(talkative(0), num_slots=1)
    busy.admit(Request(prompt=(1,)), 0)
    with pytest.raises(UserError, match="the engine is busy with other requests"):
        list(busy.run([]))


def test_the_number_of_rows_is_one_that_treats_all_alike() -> None:
    def uneven(bad: set[int]):
        """A product that is off in the last row where the number of rows is one of `bad`."""

        def product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            out = rows @ weight.T
            return out + (torch.arange(len(rows)) == len(rows) - 1)[:, None] if len(rows) in bad else out

        return product

    weights = [torch.eye(4)]
    assert rows_needed(weights, 5, uneven(set())) == 5
    assert rows_needed(weights, 5, uneven({5, 6, 7})) == 8
    assert rows_needed(weights, 1, uneven({1})) == 1
    with pytest.raises(UserError, match="depends on the position of the row"):
        rows_needed(weights, 5, uneven(set(range(2, 5000))))
