"""What a model makes of a sentence and of its speech: hidden states of each by itself.

Neither sees the other: the sentence and its true codes are two sequences, each after the token that begins a text. So
how near they lie to each other is the model's own doing.

Shapes: n text tokens, m speech positions, D width.

Example:
    text, speech = hidden_states(model, tokenizer, "the river", codes)
"""

import numpy as np
import numpy.typing as npt
import torch

from slmkit.data.prompt import normalize_text
from slmkit.data.sequence import Piece, build
from slmkit.data.text import TextTokenizer
from slmkit.model.slm import SpeechLM

States = npt.NDArray[np.float32]


@torch.inference_mode()
def hidden_states(
    model: SpeechLM, tokenizer: TextTokenizer, text: str, codes: npt.NDArray[np.int16]
) -> tuple[States, States]:
    """Final hidden states float32 [n, D] of a sentence and [m, D] of its codes int16 [K, T]."""
    layout = model.layout
    start = Piece((layout.bos_id,), "text", False)
    words = Piece(tuple(tokenizer.encode(normalize_text(text))), "text", False)
    opening = Piece((layout.id_of("<sosp>"),), "text", False)
    of_text = _hidden(model, [start, words], None)[1:]
    return of_text, _hidden(model, [start, opening, Piece((), "speech", False)], codes)[2:-1]  # without <eosp>


def _hidden(model: SpeechLM, pieces: list[Piece], codes: npt.NDArray[np.int16] | None) -> States:
    example = build(pieces, codes, model.layout, model.group)
    tokens = torch.from_numpy(example.tokens).to(model.device)
    embedded = model.embed(tokens, torch.from_numpy(example.speech_mask).to(model.device))
    positions = torch.arange(len(tokens), device=model.device)[None]
    return model.hidden(embedded[None], positions, cache=model.new_cache())[0].float().cpu().numpy()
