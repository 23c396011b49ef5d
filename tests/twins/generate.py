"""Decoding one prompt with a key-value cache, text and speech in one answer: the engine's plain twin.

Its cache is transformers' own, which grows by joining tensors. A choice in text, or in interleaved speech, is made
among the logits of the whole vocabulary; in grouped speech every head's choice is read from the device by itself.

Shapes: S prompt positions, G ids per position, K streams, T frames, D speaker width, V vocabulary or classes.

Example:
    out = generate(model, prompt_example(tokenizer, layout, "hello", group=3, speaker=False))
    out.codes, out.stop
"""

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import Cache, DynamicCache

from slmkit.data import prompt
from slmkit.data.sequence import Example, build, tokenize
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.infer.grammar import Grammar, make_grammar
from slmkit.infer.sampling import Sampling
from slmkit.model.slm import SpeechLM

GREEDY = Sampling()


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When to stop an answer that does not end by itself."""

    max_frames: int = 2400  # codec frames
    max_text_tokens: int = 256  # text positions of the answer, `<sosp>` included


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One answer. `stop`: "end" (the model ended it), "speech_limit" or "text_limit"."""

    codes: npt.NDArray[np.uint16]  # [K, T]
    text_ids: tuple[int, ...]  # the words around the speech
    num_steps: int  # positions decoded
    stop: Literal["end", "speech_limit", "text_limit"]


def prompt_example(tokenizer: TextTokenizer, layout: VocabLayout, text: str, *, group: int, speaker: bool) -> Example:
    """The prompt that asks to read `text`, up to where the answer begins."""
    segments = prompt.prompt_only(prompt.tts(text, speaker=speaker))
    return build(tokenize(segments, tokenizer.encode, layout), None, layout, group)


@torch.inference_mode()
def generate(
    model: SpeechLM,
    start: Example,
    *,
    speaker: torch.Tensor | None = None,
    limits: Limits | None = None,
    text_sampling: Sampling = GREEDY,
    speech_sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Generation:
    """Answer a prompt. `speaker` float32 [D] fills the prompt's speaker slot; `seed` draws what is sampled."""
    limits = limits or Limits()
    generator = torch.Generator().manual_seed(seed)
    grammar = make_grammar(model.layout, model.group)
    decoder = PlainDecoder(model)
    decoder.append(model.embed_prompt(start, speaker))
    num_steps = num_text_steps = num_speech_steps = 0  # the last of this stretch of speech
    stop: Literal["end", "speech_limit", "text_limit"] = "end"
    while True:
        is_speech = grammar.mode == "speech"
        sampling = speech_sampling if is_speech else text_sampling
        if is_speech and model.group:
            phase = num_speech_steps * model.group % model.layout.num_streams
            allowed = [allowed_classes(model.layout, model.group, phase, head) for head in range(model.group)]
            chosen = map(masked_classes, decoder.head_logits, allowed)
            ids = grammar.accept_speech([pick(logits, sampling, generator) for logits in chosen])
            num_speech_steps = num_speech_steps + 1 if grammar.mode == "speech" else 0
        else:
            token = pick(masked(grammar, decoder.lm_logits), sampling, generator)
            if is_speech:
                grammar.accept_speech([token])
            else:
                grammar.accept_text(token)
            ids = [token] * max(1, model.group)
        num_steps += 1
        num_text_steps += not is_speech
        if grammar.mode == "end":
            break
        if len(grammar.frames) >= limits.max_frames:
            stop = "speech_limit"
            break
        if num_text_steps >= limits.max_text_tokens:
            stop = "text_limit"
            break
        tokens = torch.tensor([[ids]], device=model.device)
        mask = torch.tensor([[is_speech and model.group > 0]], device=model.device)
        decoder.append(model.embed(tokens, mask))
    return Generation(
        codes=grammar.codes()[:, : limits.max_frames],
        text_ids=tuple(grammar.text_ids),
        num_steps=num_steps,
        stop=stop,
    )


class PlainDecoder:
    """The model with its cache: positions in, logits [V] of what follows the last one out."""

    def __init__(self, model: SpeechLM) -> None:
        self.model, self.cache, self.length = model, DynamicCache(), 0

    def append(self, embedded: torch.Tensor) -> None:
        """Read positions, float [1, S, D]."""
        span = embedded.shape[1]
        positions = torch.arange(self.length, self.length + span, device=embedded.device)[None]
        hidden = self.model.hidden(embedded, positions, cache=self.cache)
        heads = head_logits(self.model, hidden, positions, cache=self.cache)
        self.lm_logits = self.model.lm_model.lm_head(hidden[0, -1])
        self.head_logits = [logits[0, -1] for logits in heads]
        self.length += span


def head_logits(
    model: SpeechLM, hidden: torch.Tensor, position_ids: torch.Tensor, *, cache: Cache | None = None
) -> list[torch.Tensor]:
    """Class logits of every head, each float [B, S, C], at positions of hidden [B, S, D].

    Heads with layers look back at all positions: give them the cache of `hidden`, and every stretch of positions in
    order, text included.
    """
    states = [head.states(hidden, position_ids, model.backbone.rotary_emb, cache=cache) for head in model.heads]
    return [head.output(head.features(each)) for head, each in zip(model.heads, states, strict=True)]


@functools.cache
def allowed_classes(layout: VocabLayout, group: int, phase: int, head: int) -> dict[int, int]:
    """What a head may choose in a step whose first token is of stream `phase`: token id by class.

    Codes come first, as many classes as the largest codebook that the head ever meets has entries; then `<eosp>`; then
    the pad, where some length of speech leaves that place of its last step free.
    """
    num_streams = layout.num_streams
    _, first, size = layout.streams[(phase + head) % num_streams]
    most = max(layout.codebook_sizes[(n * group + head) % num_streams] for n in range(num_streams))
    ids = {code: first + code for code in range(size)} | {most: layout.id_of("<eosp>")}
    rests = (num_streams * num_frames % group for num_frames in range(1, group + 1))
    if any(0 < rest <= head for rest in rests):
        ids[most + 1] = layout.id_of("<|speech_pad|>")
    return ids


def masked_classes(logits: torch.Tensor, allowed: dict[int, int]) -> torch.Tensor:
    """Class logits [C] of a head with -inf at every class that is not allowed."""
    if len(allowed) == len(logits):
        return logits
    out = torch.full_like(logits, -torch.inf)
    out[list(allowed)] = logits[list(allowed)]
    return out


def masked(grammar: Grammar, logits: torch.Tensor) -> torch.Tensor:
    """Vocabulary logits [V] with -inf at every token that may not come next."""
    out, allowed = torch.full_like(logits, -math.inf), grammar.allowed(grammar.state)
    out[allowed] = logits[allowed]
    return out


def pick(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One class of logits, float [V], in which -inf marks what may not be chosen."""
    if sampling.temperature == 0:
        return int(logits.float().argmax())
    scaled = logits.float().cpu() / sampling.temperature
    probabilities = truncate(scaled, sampling.top_k, sampling.top_p).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def truncate(logits: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`logits` [..., V] with -inf at every class outside the top k and outside the nucleus of probability `top_p`."""
    if top_k and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -math.inf)
    if top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, places, before >= top_p)
        logits = logits.masked_fill(outside, -math.inf)
    return logits
