"""Decoding one prompt with a key-value cache, text and speech in one answer: the engine's plain twin.

Its cache is transformers' own, which grows by joining tensors. A choice in text, or in interleaved speech, is made
among the logits of the whole vocabulary; in grouped speech every head's choice is read from the device by itself.

Shapes: S prompt positions, G ids per position, K streams, T frames, D speaker width.

Invariant: greedy decoding gives what teacher forcing the same tokens predicts; the output always decodes to audio.

Example:
    out = generate(model, prompt_example(tokenizer, layout, "hello", group=3, speaker=False))
    out.codes, out.stop
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data import prompt
from slmkit.data.sequence import Example, build, tokenize
from slmkit.data.text import TextTokenizer
from slmkit.data.vocab import VocabLayout
from slmkit.infer.grammar import make_grammar
from slmkit.infer.sampling import Sampling, pick
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

    codes: npt.NDArray[np.int16]  # [K, T]
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
    """Answer a prompt. `speaker` float32 [D] fills the prompt's speaker slot; `seed` draws what is sampled.

    Raises ValueError when the prompt has a speaker slot and no vector is given.
    """
    if len(start.speaker_positions) and speaker is None:
        raise ValueError("the prompt has a speaker slot but no speaker vector was given")
    limits = limits or Limits()
    generator = torch.Generator().manual_seed(seed)
    grammar = make_grammar(model.layout, model.group, model.lm_model.lm_head.out_features)
    decoder = _Decoder(model)
    hidden = decoder.prefill(start, speaker)
    num_steps = num_text_steps = 0
    stop = "end"
    while True:
        sampling = speech_sampling if grammar.mode == "speech" else text_sampling
        is_speech = grammar.mode == "speech"

        def choose(logits: torch.Tensor, sampling: Sampling = sampling) -> torch.Tensor:
            return pick(logits.float() if sampling.temperature == 0 else logits.float().cpu(), sampling, generator)

        if is_speech:
            ids = grammar.speech_step(choose, decoder.speech_logits(hidden))
        else:
            ids = [grammar.text_step(choose, model.lm_logits(hidden[0, -1]))] * max(1, model.group)
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
        hidden = decoder.step(ids, is_speech)
    return Generation(
        codes=grammar.codes()[:, : limits.max_frames],
        text_ids=tuple(grammar.text_ids),
        num_steps=num_steps,
        stop=stop,  # type: ignore[arg-type]
    )


class _Decoder:
    """The model with its cache: positions in, final hidden state of the last one out."""

    def __init__(self, model: SpeechLM) -> None:
        self.model = model
        self.cache = model.new_cache()
        self.length = 0
        self._head_logits: list[torch.Tensor] = []

    def prefill(self, start: Example, speaker: torch.Tensor | None) -> torch.Tensor:
        """Read the prompt. Returns hidden states float [1, S, D]."""
        device = self.model.device
        tokens = torch.from_numpy(start.tokens).to(device)
        mask = torch.from_numpy(start.speech_mask).to(device)
        places = torch.from_numpy(start.speaker_positions).to(device)
        vectors = None if speaker is None or not len(places) else speaker.to(device)[None].expand(len(places), -1)
        return self._run(self.model.embed(tokens, mask, vectors, places if vectors is not None else None)[None])

    def step(self, ids: list[int], is_speech: bool) -> torch.Tensor:
        """Append one position of G ids. Returns hidden states float [1, 1, D]."""
        device = self.model.device
        tokens = torch.tensor([[ids]], device=device)
        mask = torch.tensor([[is_speech and self.model.group > 0]], device=device)
        return self._run(self.model.embed(tokens, mask))

    def speech_logits(self, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Logits of the next speech position: [V] for NTP, [C] per head for MTP."""
        if not self.model.group:
            return [self.model.lm_logits(hidden[0, -1])]
        return [logits[0, -1] for logits in self._head_logits]

    def _run(self, embedded: torch.Tensor) -> torch.Tensor:
        span = embedded.shape[1]
        positions = torch.arange(self.length, self.length + span, device=embedded.device)[None]
        hidden = self.model.hidden(embedded, positions, cache=self.cache)
        if self.model.group:  # transformer heads must see every stretch of positions
            self._head_logits = self.model.head_logits(hidden, positions, cache=self.cache)
        self.length += span
        return hidden
