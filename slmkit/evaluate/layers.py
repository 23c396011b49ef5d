"""The hidden states of a model at the words of a sentence and at the speech that says them.

The sample is laid out as in training (`prompt.tts`: read this sentence, the speech is), teacher-forced. Text positions
are those of the sentence's own words in the prompt, without the instruction around them; speech positions are those of
the codes, without `<eosp>`: K per frame for a next-token model, one per step for a multi-token one.

Invariant: the states behind the last layer are those that the model's heads read.

Example:
    pairs = hidden_pairs(model, tokenizer, reader.read(0))
    alignment(*pairs[-1])
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data import prompt
from slmkit.data.sequence import Example, Piece, build, tokenize
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.errors import BadSample
from slmkit.model.backbone import run_layers
from slmkit.model.slm import SpeechLM

States = npt.NDArray[np.float32]


def hidden_pairs(model: SpeechLM, tokenizer: TextTokenizer, sample: Sample) -> list[tuple[States, States]]:
    """(text states float32 [n, D], speech states float32 [m, D]) before the first layer and behind each.

    The last are normalised, as the heads see them. Raises BadSample when the sample has no text, no frames, or no
    speaker vector where the model wants one.
    """
    aware = model.config.speaker_dim > 0
    if not sample.codes.shape[1]:
        raise BadSample("empty", f"{sample.key} has no frames")
    if aware and sample.speaker is None:
        raise BadSample("missing_field", f"{sample.key} has no speaker vector, and the model wants one")
    segments = prompt.example("tts", sample.meta, speaker=aware)
    pieces = tokenize(segments, tokenizer.encode, model.layout)
    example = build(pieces, sample.codes[: model.layout.num_streams], model.layout, model.group)
    text = prompt.normalize_text(sample.meta["text"])
    words, speech = word_positions(segments, pieces, text, tokenizer), speech_positions(pieces, example)
    vector = torch.from_numpy(sample.speaker) if aware and sample.speaker is not None else None
    return [(states[words], states[speech]) for states in layer_states(model, example, vector)]


@torch.inference_mode()
def layer_states(model: SpeechLM, example: Example, speaker: torch.Tensor | None = None) -> list[States]:
    """States float32 [S, D] of `example` before the first layer and behind each.

    `speaker` float32 [D] fills its slot.
    """
    device, qwen2 = model.device, model.lm_model.model
    vectors = None if speaker is None else speaker[None].to(device)
    hidden = model.embed(
        torch.from_numpy(example.tokens).to(device),
        torch.from_numpy(example.speech_mask).to(device),
        vectors,
        torch.from_numpy(example.speaker_positions).to(device),
    )[None]
    position_ids = torch.arange(hidden.shape[1], device=device)[None]
    states = [hidden]
    for layer in qwen2.layers:
        states.append(run_layers([layer], qwen2.rotary_emb, states[-1], position_ids))
    states[-1] = qwen2.norm(states[-1])
    return [state[0].float().cpu().numpy() for state in states]


def word_positions(
    segments: Sequence[prompt.Segment], pieces: Sequence[Piece], text: str, tokenizer: TextTokenizer
) -> npt.NDArray[np.int64]:
    """Positions of the words of `text`, normalised, in the prompt that asks to read it.

    The first text of the prompt is instruction and sentence in one piece. What its ends share with the tokens of the
    instruction alone is not of the sentence; a token that holds a bit of both is.
    """
    number = next(i for i, segment in enumerate(segments) if segment.kind == "text")
    before = prompt.TEMPLATES["tts"].partition("{text}")[0].removeprefix("[Human]")
    after = segments[number].value[len(before) + len(text) :]
    ids, start = pieces[number].ids, sum(len(piece.ids) for piece in pieces[:number])
    first = _shared(tokenizer.encode(before), ids)
    last = len(ids) - _shared(tokenizer.encode(after)[::-1], ids[first:][::-1])
    return np.arange(start + first, start + last)


def speech_positions(pieces: Sequence[Piece], example: Example) -> npt.NDArray[np.int64]:
    """Positions of the codes of the only speech piece, `<eosp>` left out."""
    number = next(i for i, piece in enumerate(pieces) if piece.kind == "speech")
    before, after = (sum(len(piece.ids) for piece in part) for part in (pieces[:number], pieces[number + 1 :]))
    return np.arange(before, len(example.tokens) - after - 1)


def _shared(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many first entries are equal."""
    return next((i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
