"""The baseline of the training benchmark: the same weights on a padded batch, all logits at every position.

Shapes: U utterances, S positions of the longest, N positions of the packed batch, G ids per position.

Example:
    loss = Padded(model).step(batch)  # gradients are those of `model(batch).loss.backward()`
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from slmkit.data.batch import Batch
from slmkit.model.losses import coefficients
from slmkit.model.slm import SpeechLM

BASELINE_SLICE = 512  # positions whose logits the baseline holds at a time
IGNORED = -100


class Padded(nn.Module):
    """The baseline: the same weights on a padded batch, all logits at every position."""

    def __init__(self, ours: SpeechLM) -> None:
        super().__init__()
        values = {**ours.lm_model.config.to_dict(), "attn_implementation": "sdpa"}
        self.lm = nn.Module.to(Qwen2ForCausalLM(Qwen2Config(**values)), device=ours.device, dtype=ours.dtype).train()
        self.lm.load_state_dict(ours.lm_model.state_dict())
        self.heads = nn.ModuleList(copy.deepcopy(head.output) for head in ours.heads)
        self.text_weight = ours.config.text_loss_weight

    def step(self, batch: Batch) -> torch.Tensor:
        """Forward and backward pass. Returns the loss."""
        tokens, mask, places = pad(batch)
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand(len(tokens), -1)
        embedded = self.lm.model.embed_tokens(tokens).mean(dim=2)
        output = self.lm.model(inputs_embeds=embedded, attention_mask=mask, position_ids=positions, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1)
        shares = coefficients(batch.global_counts, group=len(self.heads), text_weight=self.text_weight)
        wanted = [(self.lm.lm_head, batch.lm_positions, batch.lm_targets, shares[0])]
        for i, head in enumerate(self.heads):
            wanted.append((head, batch.head_positions, batch.head_targets[:, i], shares[1 + i]))
        pieces = [piece.detach().requires_grad_() for piece in hidden.split(BASELINE_SLICE)]
        total = torch.zeros((), device=hidden.device)
        for layer, where, targets, share in wanted:
            labels = torch.full((len(hidden),), IGNORED, device=hidden.device)
            labels[places[where]] = targets
            for piece, label in zip(pieces, labels.split(BASELINE_SLICE), strict=True):
                loss = share * F.cross_entropy(layer(piece).float(), label, ignore_index=IGNORED, reduction="sum")
                loss.backward()
                total += loss.detach()
        hidden.backward(torch.cat([piece.grad for piece in pieces if piece.grad is not None]))
        return total


def pad(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens [U, S, G] and mask bool [U, S] of the padded batch, and where in U * S each packed position went [N]."""
    lengths = torch.diff(batch.cu_seqlens)
    count, longest = len(lengths), int(lengths.max())
    places = torch.repeat_interleave(torch.arange(count, device=lengths.device) * longest, lengths) + batch.position_ids
    tokens = batch.tokens.new_zeros(count * longest, batch.tokens.shape[1])
    tokens[places] = batch.tokens
    mask = torch.zeros(count * longest, dtype=torch.bool, device=lengths.device)
    mask[places] = True
    return tokens.unflatten(0, (count, longest)), mask.unflatten(0, (count, longest)), places
