"""Answering many requests at once: a fixed number of slots, refilled from a queue as answers come to their end.

Law: a request's output is a function of the request and the engine (model, number of slots, threads, device), not of
what else is in the batch, in which slot it sits or when it came. `decoder` says why its numbers have that property;
`sampling` draws each request's random numbers from its own seed.

A step computes the logits of what some answer may choose next and of nothing else: in text the rows up to `<sosp>`, in
interleaved speech the rows of one stream, in grouped speech the heads. What all chose comes to the host at once.

Shapes: N slots, G ids per position, K streams, H heads, C classes.

An answer whose request is watched (`watch`) and that will not end, or is far too short, is tried again in its slot, and
the request's one output is the best attempt.

A model with damaged weights may give logits that are not finite. That ends the request which they belong to, and no
other.

Invariant: outputs hold whole frames; each request gets exactly one output; a slot is free again whatever happens.

Example:
    engine = Engine(model, num_slots=8)
    for number, output in engine.run(requests):
        ...
"""

import dataclasses
import math
from collections.abc import Generator, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from slmkit.codec.base import Codes
from slmkit.data.sequence import phases
from slmkit.errors import UserError
from slmkit.infer.decoder import SlotDecoder, to_device
from slmkit.infer.grammar import SPEECH, TEXT, Grammar, make_grammar
from slmkit.infer.request import Limit, Output, Request, checked_prompt
from slmkit.infer.sampling import Choice, choose, packed, seed_of_attempt
from slmkit.infer.watch import RETRY_TEMPERATURE, Lookout, Runaway
from slmkit.model.losses import head_candidates
from slmkit.model.slm import SpeechLM

MAX_LONE_FAILURES = 8  # answers in a row, each without company, after which it is the machine that fails
DEFAULT_SEC = 30.0  # of speech, for which an engine has room
TEXT_POSITIONS = 1024  # for the prompt, and the words of the answer


class ActiveRequest:
    """A request in a slot: one attempt at its answer, with the `Output`s of those before."""

    def __init__(
        self, request: Request, number: int, grammar: Grammar, frame_rate: float, earlier: tuple[Output, ...] = ()
    ) -> None:
        self.asked, self.number, self.grammar, self.earlier = request, number, grammar, earlier
        self._max_frames = max(1, int(request.max_sec * frame_rate))
        self.request = _attempt(request, len(earlier))
        self.num_steps = self.num_text_steps = 0
        self._lookout = None if request.watch is None else Lookout(request.watch, frame_rate)

    @property
    def max_frames(self) -> int:
        """Frames that the output has at most."""
        return self._max_frames if self._lookout is None else int(min(self._max_frames, self._lookout.most_frames))

    def rows(self, width: int, is_grouped: bool) -> list[Choice]:
        """What each choice of this step depends on; `width` choices make a step at most."""
        grammar, is_text = self.grammar, self.grammar.state == TEXT
        sampling = self.request.text_sampling if is_text else self.request.speech_sampling
        heads = range(width if is_grouped and not is_text else 1)
        recent: list[Sequence[int]] = [()] * len(heads)
        if sampling.repetition_penalty != 1:
            recent = [grammar.recent(grammar.stream(head), sampling.repetition_window) for head in heads]
            if is_text:
                # Of text, class i is token i; the marks of an answer are beyond that, and each is written once anyway.
                recent = [[i for i in grammar.text_ids[-sampling.repetition_window :] if i < grammar.layout.base_size]]
        return [Choice(sampling, self.request.seed, self.num_steps * width + head, recent[head]) for head in heads]

    def reached(self) -> Limit | None:
        """The limit of the request that the answer has come to."""
        if len(self.grammar.frames) >= self._max_frames:
            return "seconds"
        if self.num_text_steps >= self.request.max_text_tokens:
            return "text_tokens"
        return "steps" if self.num_steps == self.request.max_steps else None

    def runaway(self) -> Runaway | None:
        """What the watch sees in the speech so far."""
        if self._lookout is None:
            return None
        return self._lookout.look(self.grammar.frames, len(self.grammar.text_ids))

    def output(self, limit: Limit | None, runaway: Runaway | None = None) -> Output:
        """Of this attempt."""
        codes = self.grammar.codes()[:, : self.max_frames]
        is_short = not limit and not runaway and self._lookout is not None and self._lookout.is_short(codes.shape[1])
        return Output(
            codes=codes,
            text_ids=tuple(self.grammar.text_ids),
            num_steps=self.num_steps,
            reason="runaway" if runaway else "limit" if limit else "end",
            limit=limit or runaway,
            warning="short" if is_short else None,
            seed=self.request.seed,
            runaways=int(runaway is not None),
        )

    def is_tried_again(self, output: Output) -> bool:
        """Whether `output`, of this attempt, is to be replaced by that of another one."""
        watch = self.asked.watch
        is_bad = output.reason == "runaway" or output.warning is not None
        return is_bad and watch is not None and len(self.earlier) < watch.max_retries

    def best(self, output: Output) -> Output:
        """The answer to the request; `output` is that of the last attempt."""
        attempts = [*self.earlier, output]
        if self._lookout is None or output.limit == "not_finite":
            best = output
        else:
            distance = self._lookout.distance

            def rank(one: Output) -> tuple[bool, float, bool]:
                return one.is_success, -distance(one.codes.shape[1]), one.reason != "runaway"

            best = max(attempts, key=rank)
        runaways, num_steps = sum(one.runaways for one in attempts), sum(one.num_steps for one in attempts)
        return dataclasses.replace(best, attempts=len(attempts), runaways=runaways, num_steps=num_steps)


def _attempt(request: Request, attempt: int) -> Request:
    """The request of attempt 0, 1, ...: with other random numbers, and never greedy, but in the first."""
    if not attempt:
        return request
    speech = request.speech_sampling
    if not speech.temperature:
        speech = dataclasses.replace(speech, temperature=RETRY_TEMPERATURE)
    return dataclasses.replace(request, seed=seed_of_attempt(request.seed, attempt), speech_sampling=speech)


def positions_for(model: SpeechLM, max_sec: float = DEFAULT_SEC) -> int:
    """Positions that a prompt and `max_sec` seconds of speech take, as far as the backbone knows so many."""
    tokens_per_sec = model.config.codec_spec.frame_rate * model.layout.num_streams
    wanted = TEXT_POSITIONS + math.ceil(max_sec * tokens_per_sec / max(1, model.group))
    return min(wanted, model.lm_model.config.max_position_embeddings)


class Engine:
    """See the module. `model` must be in evaluation mode and keep its weights."""

    def __init__(self, model: SpeechLM, *, num_slots: int = 8, num_positions: int | None = None) -> None:
        """`num_positions`: of prompt and answer together, by default as of `positions_for`.

        Raises UserError for numbers out of range, and as `SlotDecoder` does.
        """
        most = model.lm_model.config.max_position_embeddings
        self.num_positions = positions_for(model) if num_positions is None else num_positions
        if num_slots < 1:
            raise UserError("the engine has no slots", got=num_slots, expected="1 or more")
        if not 1 < self.num_positions <= most:
            raise UserError("the positions do not fit the backbone", got=self.num_positions, expected=f"2 to {most}")
        self.model, self.num_slots = model, num_slots
        self._frame_rate = model.config.codec_spec.frame_rate
        self._width, self._is_grouped = max(1, model.group), model.group > 0
        states = SPEECH if model.group else SPEECH + model.layout.num_streams
        grammar = self._grammar()
        self._ids = [grammar.allowed(state) for state in range(states)]
        self._text_ids = torch.tensor(self._ids[TEXT], device=model.device)
        weight = model.lm_model.lm_head.weight
        with torch.inference_mode():
            # Text rows are nearly all rows: they are not copied, and the few between them that are no text are left out
            # of the logits.
            rows = [weight[: max(self._ids[TEXT]) + 1], *(weight[ids] for ids in self._ids[SPEECH:])]
        self._phases = phases(model.group, model.layout.num_streams)
        self._classes = self._classes_by_phase()
        self._decoder = SlotDecoder(model, num_slots=num_slots, num_positions=self.num_positions, lm_rows=rows)
        self._active: dict[int, ActiveRequest] = {}  # by slot

    @property
    def num_free(self) -> int:
        """Slots that wait for a request."""
        return self.num_slots - len(self._active)

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """One output for each request, in their order. Raises UserError before anything is decoded."""
        for request in requests:
            self.check(request)
        outputs = dict(self.run(requests))
        return [outputs[number] for number in range(len(requests))]

    def run(self, requests: Iterable[Request]) -> Generator[tuple[int, Output]]:
        """(number of the request, its output) as each is done; requests are taken when there is room for them.

        Raises UserError at a request that does not fit; those in the slots are then given up.
        """
        if self._active:
            raise UserError("the engine is busy with other requests", next_step="wait for them, or make another engine")
        waiting, number = iter(requests), 0
        try:
            while True:
                while self.num_free and (request := next(waiting, None)) is not None:
                    self.admit(request, number)
                    number += 1
                if not self._active:
                    return
                yield from self.step()
        finally:
            self._active.clear()

    def check(self, request: Request) -> None:
        """Raise UserError when the request does not fit model and engine."""
        checked_prompt(request, self.model, self.num_positions)

    @torch.inference_mode()
    def admit(self, request: Request, number: int) -> None:
        """Read the prompt of a request into a free slot; its output will bear `number`. Raises UserError as `check`."""
        slot = next(slot for slot in range(self.num_slots) if slot not in self._active)
        self._begin(slot, request, number)

    def _begin(self, slot: int, request: Request, number: int, earlier: tuple[Output, ...] = ()) -> None:
        prompt = checked_prompt(request, self.model, self.num_positions)
        self._decoder.prefill(slot, prompt, request.speaker)
        self._active[slot] = ActiveRequest(request, number, self._grammar(), self._frame_rate, earlier)

    def frames(self, number: int, first: int = 0) -> Codes:
        """uint16 [K, T]: the whole frames of a running answer from frame `first` on, no more than its output will have.

        Those of a request that may be tried again count for nothing if it is.
        Raises KeyError when no answer with that number is running.
        """
        answer = self._active[self._slot_of(number)]
        return answer.grammar.codes(first)[:, : answer.max_frames - first]

    def cancel(self, number: int) -> None:
        """Give up a running answer; its slot is free. Raises KeyError when there is none with that number."""
        del self._active[self._slot_of(number)]

    def _slot_of(self, number: int) -> int:
        for slot, answer in self._active.items():
            if answer.number == number:
                return slot
        raise KeyError(number)

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Output]]:
        """Decode one position of every answer. Returns those that are done with it; their slots are free."""
        done, again, positions = [], [], {}
        for slot, chosen in self._choices().items():
            answer = self._active[slot]
            if min(chosen) < 0:
                done.append((answer.number, answer.best(answer.output("not_finite"))))
                del self._active[slot]
                continue
            grammar, is_text = answer.grammar, answer.grammar.state == TEXT
            answer.num_steps += 1
            answer.num_text_steps += is_text
            if is_text:
                grammar.accept_text(chosen[0])
                ids = chosen * self._width
            else:
                ids = grammar.accept_speech(chosen)
            full: Limit | None = "positions" if self._decoder.length(slot) == self.num_positions else None
            limit = None if grammar.mode == "end" else answer.reached() or full
            runaway = None if limit or is_text else answer.runaway()
            if not (limit or runaway or grammar.mode == "end"):
                positions[slot] = (ids, not is_text)
                continue
            output = answer.output(limit, runaway)
            del self._active[slot]
            if answer.is_tried_again(output):
                again.append((slot, answer.asked, answer.number, (*answer.earlier, output)))
            else:
                done.append((answer.number, answer.best(output)))
        if positions:
            self._decoder.advance(positions)
        for attempt in again:  # after the step, which overwrites what it finds in slots without a position
            self._begin(*attempt)
        return done

    def _choices(self) -> dict[int, list[int]]:
        """What each answer chooses next: a token id, or one class per head; -1 where logits are not finite.

        One transfer to the device, of all settings and numbers, and one from it, of all that was chosen.
        """
        slots_of: dict[int, list[int]] = {}
        for slot, answer in sorted(self._active.items()):
            slots_of.setdefault(answer.grammar.state, []).append(slot)
        choices: list[Choice] = []
        places: list[tuple[int, int]] = []  # of each choice: its row of the logits, and of the classes it may take
        counts: list[int] = []  # choices of each state
        for state, slots in slots_of.items():
            for slot in slots:
                choices += self._active[slot].rows(self._width, self._is_grouped)
                places += self._places(state, slot)
            counts.append(len(choices) - sum(counts))
        numbers = to_device(torch.from_numpy(np.hstack([places, packed(choices)])), self.model.device)
        chosen, first = [], 0
        for state, part in zip(slots_of, numbers.split(counts), strict=True):
            chosen.append(self._choose(state, choices[first : first + len(part)], part))
            first += len(part)
        flat = iter(torch.cat(chosen).tolist())
        return {
            slot: [self._meant(state, next(flat)) for _ in self._places(state, slot)]
            for state, slots in slots_of.items()
            for slot in slots
        }

    def _places(self, state: int, slot: int) -> list[tuple[int, int]]:
        """Of each choice of an answer: its row of the logits in `state`, and its row of `_classes`."""
        if state == TEXT or not self._is_grouped:
            return [(slot, 0)]
        phase = self._phases.index(self._active[slot].grammar.phase)
        return [(slot * self._width + head, phase * self._width + head) for head in range(self._width)]

    def _choose(self, state: int, choices: Sequence[Choice], numbers: torch.Tensor) -> torch.Tensor:
        """int64 [M]: what each of `choices` takes of what may be chosen in `state`; -1 where logits are not finite.

        numbers float64 [M, 2 + ...]: the places of each, then what `packed` makes of it.
        """
        places = numbers[:, :2].long()
        if self._is_grouped and state != TEXT:
            heads = self._decoder.head_logits()
            most = max(head.shape[1] for head in heads)
            as_wide = (head if head.shape[1] == most else F.pad(head, (0, most - head.shape[1])) for head in heads)
            padded = torch.stack([*as_wide], dim=1)
            logits = torch.where(self._classes[places[:, 1]], padded.flatten(0, 1)[places[:, 0]], -math.inf)
        else:
            logits = self._decoder.lm_logits(state)[places[:, 0]]
            if state == TEXT:
                logits = logits[:, self._text_ids]
        # One number that is not finite would take a draw out of its range, and all answers with it.
        is_finite = logits.amax(dim=-1, keepdim=True).isfinite()
        chosen = choose(torch.where(is_finite, logits, 0), choices, numbers[:, 2:])
        return torch.where(is_finite[:, 0], chosen, -1)

    def _meant(self, state: int, chosen: int) -> int:
        """The token id, or the class of a head, that number `chosen` of what may be chosen stands for."""
        is_class = chosen < 0 or (self._is_grouped and state != TEXT)
        return chosen if is_class else self._ids[state][chosen]

    def _classes_by_phase(self) -> torch.Tensor:
        """Bool [phases * H, C]: which classes a head may choose in a step, for each of `_phases`."""
        heads = self.model.heads
        most = max((head.output.out_features for head in heads), default=0)
        classes = torch.zeros(len(self._phases), len(heads), most, dtype=torch.bool)
        for head, by_phase in enumerate(head_candidates(self.model.layout, self.model.group)):
            for phase, ranges in by_phase.items():
                for start, stop in ranges:
                    classes[self._phases.index(phase), head, start:stop] = True
        return classes.flatten(0, 1).to(self.model.device)

    def _grammar(self) -> Grammar:
        return make_grammar(self.model.layout, self.model.group)
