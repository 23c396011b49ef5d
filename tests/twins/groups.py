"""Groups of any size from their definition: the tokens of an utterance in a row, cut into steps, counted one by one.

Shapes: K streams, T frames, G tokens of a step, H = G heads.

Example:
    steps_of(codes, group=3)[0]      # [(0, 17), (1, 4), (2, 99)]: stream and code of each token of the first step
    head_sums(model, batch)  # of a model without speaker input
"""

import itertools
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from twins.generate import allowed_classes, head_logits

from slmkit.data.batch import Batch
from slmkit.model.slm import SpeechLM

PAD = None  # in place of (stream, code)


def steps_of(codes: Any, group: int) -> list[list[tuple[int, int] | None]]:
    """(stream, code) of every token of codes [K, T], step by step; the last step is filled with PAD."""
    row: list[tuple[int, int] | None] = [
        (k, int(code)) for frame in np.asarray(codes).T for k, code in enumerate(frame)
    ]
    while len(row) % group:
        row.append(PAD)
    return [row[start : start + group] for start in range(0, len(row), group)]


def head_sums(model: SpeechLM, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy float [H] and right answers [H] of every head, from logits of all positions."""
    sums, right = [torch.zeros(())] * model.group, torch.zeros(model.group)
    borders = batch.cu_seqlens.tolist()
    for start, stop in itertools.pairwise(borders):
        tokens, mask = batch.tokens[start:stop], batch.speech_mask[start:stop]
        positions = torch.arange(stop - start)[None]
        hidden = model.hidden(model.embed(tokens, mask)[None], positions)
        logits = head_logits(model, hidden, positions)
        for position in (p - start for p in batch.head_positions.tolist() if start <= p < stop):
            step = 0  # speech positions before the one that is predicted
            while mask[position - step]:
                step += 1
            phase = step * model.group % model.layout.num_streams
            for head, of_head in enumerate(logits):
                allowed = allowed_classes(model.layout, model.group, phase, head)
                scores = of_head[0, position, list(allowed)]
                target = list(allowed.values()).index(int(tokens[position + 1, head]))
                sums[head] = sums[head] + F.cross_entropy(scores[None], torch.tensor([target]))
                right[head] += scores.argmax() == target
    return torch.stack(sums), right
