"""The speech language model: a text model that reads and writes text and codec codes.

Next-token prediction (group 0) has codes as ordinary tokens and no further part. Multi-token prediction reads a step
of `group` tokens as one position and predicts the next step with one head per token. The same class serves both and
every group size. Weights are named as in the published checkpoints: `lm_model.*`, `spk_emb_proj.*`, `speech_heads.*`.

Text logits are computed only where a text target is, speech heads only where a speech target is.

Shapes: N positions of a packed micro-batch, B batch and S positions of a prompt, G ids per position, D width,
V vocabulary rows, H heads, P speaker slots, T loss terms besides text.

Invariant: the sum of `loss` over all micro-batches of a global batch is the loss of the global batch, however it is
cut; utterances of a micro-batch do not see each other; every parameter gets a gradient in every micro-batch; every
training step calls the same modules in the same order, targets or not, and reads a weight only in its module's forward
(ZeRO-3 needs both).

Example:
    model = SpeechLM(config)
    output = model(batch)
    output.loss.backward()
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, PreTrainedModel

from slmkit.data.batch import Batch
from slmkit.data.sequence import Example, head_classes
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.model import losses
from slmkit.model.attention import Execution, Packing
from slmkit.model.backbone import extra_layers, new_causal_lm, run_layers
from slmkit.model.config import SpeechLMConfig
from slmkit.model.heads.base import OutputLayer, SpeechHead

SPEAKER_FACTOR = 4  # inner width of the speaker projector, in speaker widths: 256 -> 1024 (published code)


class StepOutput(NamedTuple):
    """What one micro-batch gives."""

    loss: torch.Tensor  # float32 [], this micro-batch's part of the loss of the global batch
    sums: torch.Tensor  # float32 [1 + T], summed cross-entropy per term
    correct: torch.Tensor  # float32 [1 + T], targets per term that have the largest logit


class SpeechLM(PreTrainedModel):
    """See the module. Raises UserError when the parts of the config do not fit together."""

    config: SpeechLMConfig
    config_class = SpeechLMConfig
    base_model_prefix = "lm_model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SpeechLMConfig) -> None:
        config.check()
        super().__init__(config)
        backbone = config.backbone_config
        width = backbone.hidden_size
        self.layout: VocabLayout = config.vocab_layout
        self.lm_model = new_causal_lm(backbone)
        self.lm_model.lm_head = OutputLayer.of(self.lm_model.lm_head)
        self.spk_emb_proj: nn.Sequential | None = None
        if config.speaker_dim:
            inner = SPEAKER_FACTOR * config.speaker_dim
            self.spk_emb_proj = nn.Sequential(nn.Linear(config.speaker_dim, inner), nn.SiLU(), nn.Linear(inner, width))
        self.fusion: nn.Sequential | None = None  # of the G embeddings of a step; None for their mean
        if config.group and config.fusion == "mlp":
            self.fusion = nn.Sequential(nn.Linear(config.group * width, width), nn.SiLU(), nn.Linear(width, width))
        kind, classes = config.head_class, head_classes(config.group, self.layout.codebook_sizes)
        self.speech_heads = nn.ModuleList(
            kind(
                backbone,
                num_classes=one.size,
                layers=extra_layers(self.backbone, kind.num_layers, backbone.num_hidden_layers + kind.num_layers * i),
            )
            for i, one in enumerate(classes)
        )
        self._candidates = losses.candidates(self.layout, backbone.vocab_size, config.softmax)
        self._head_candidates = losses.head_candidates(self.layout, config.group)
        self.execution = Execution()  # of the decoder layers in `forward`
        self.post_init()

    @property
    def group(self) -> int:
        """Tokens of a speech step, 0 for next-token prediction."""
        return self.config.group

    @property
    def is_plain(self) -> bool:
        """Whether the weights are those of a causal language model of transformers and nothing more."""
        return not self.group and self.spk_emb_proj is None

    @property
    def backbone(self) -> Any:
        """The decoder of the text model: `embed_tokens`, `layers`, `norm`, `rotary_emb`."""
        return self.lm_model.model

    @property
    def heads(self) -> list[SpeechHead]:
        """The speech heads in the order of the tokens of a step, none for next-token prediction."""
        return [head for head in self.speech_heads if isinstance(head, SpeechHead)]

    def forward(self, batch: Batch) -> StepOutput:
        """Loss of one micro-batch, scaled by the target counts of its whole global batch."""
        packing = Packing(batch.cu_seqlens, batch.num_tokens, known_lengths=batch.lengths, execution=self.execution)
        embedded = self.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)
        position_ids = batch.position_ids[None]
        hidden = self.hidden(embedded[None], position_ids, packing=packing)
        shares = losses.coefficients(batch.global_counts, group=self.group, text_weight=self.config.text_loss_weight)
        num_terms = len(shares)
        positions, targets, terms = batch.lm_positions, batch.lm_targets, batch.lm_groups
        if self.config.softmax == "stream":
            terms, order = terms.sort(stable=True)
            positions, targets = positions[order], targets[order]
            spans = [losses.TargetSpan(*pair) for pair in zip(batch.lm_counts, self._candidates, strict=True)]
        else:
            spans = [losses.TargetSpan(len(targets), self._candidates[0])]
        loss, nll, right = self.lm_model.lm_head(
            hidden[0][positions], targets=targets, scales=shares[terms], spans=spans
        )
        sums, correct = losses.sum_by_term(nll, terms, num_terms), losses.sum_by_term(right, terms, num_terms)
        for i, head in enumerate(self.heads):
            states = head.states(hidden, position_ids, self.backbone.rotary_emb, packing=packing)
            features = head.features(states[0, batch.head_positions])
            targets = batch.head_targets[:, i]
            scales = shares[1 + i].expand(len(targets))
            spans = [losses.TargetSpan(batch.head_counts[p], c) for p, c in self._head_candidates[i].items()]
            part = head.output(features, targets=targets, scales=scales, spans=spans)
            loss = loss + part.loss
            sums[1 + i], correct[1 + i] = part.nll.sum(), part.correct.sum()
        return StepOutput(loss, sums, correct)

    def embed(
        self,
        tokens: torch.Tensor,
        speech_mask: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
        speaker_positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Input embeddings float [..., D] of tokens int64 [..., G].

        speech_mask bool [...]: MTP positions that are speech steps, whose G embeddings are fused. speaker float
        [P, speaker_dim]: vectors whose projection replaces the embedding at speaker_positions int64 [P], which count
        through the flattened leading dimensions. Raises UserError when the width of tokens or speaker is another
        model's.
        """
        _check_width("tokens per position", tokens.shape[-1], max(1, self.group), "group")
        each = self.backbone.embed_tokens(tokens)
        embedded = each[..., 0, :]
        if self.group and speech_mask is not None:
            fused = each.mean(dim=-2) if self.fusion is None else self.fusion(each.flatten(-2))
            embedded = torch.where(speech_mask[..., None], fused, embedded)
        if speaker is None or speaker_positions is None:
            return embedded
        if len(speaker):
            _check_width("speaker vector", speaker.shape[-1], self.config.speaker_dim, "speaker_dim")
        if self.spk_emb_proj is None:
            return embedded
        vectors = speaker.reshape(-1, self.config.speaker_dim).to(embedded.dtype)
        flat = embedded.reshape(-1, embedded.shape[-1])
        return flat.index_copy(0, speaker_positions, self.spk_emb_proj(vectors)).view_as(embedded)

    def embed_prompt(self, prompt: Example, speaker: torch.Tensor | None = None) -> torch.Tensor:
        """Input embeddings float [1, S, D] of an example; `speaker` float32 [speaker_dim] fills its speaker slots."""
        tokens, mask, places = (
            torch.from_numpy(values).to(self.device)
            for values in (prompt.tokens, prompt.speech_mask, prompt.speaker_positions)
        )
        vectors = None if speaker is None or not len(places) else speaker.to(self.device)[None].expand(len(places), -1)
        return self.embed(tokens, mask, vectors, places)[None]

    def hidden(
        self,
        embedded: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        packing: Packing | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Final hidden states float [B, S, D], normalized, of embedded float [B, S, D] at position_ids int64 [B, S].

        Training: `packing`. Decoding: with `cache`, the S positions follow those in it and are added to it.
        """
        backbone = self.backbone
        states = run_layers(backbone.layers, backbone.rotary_emb, embedded, position_ids, packing=packing, cache=cache)
        return backbone.norm(states)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SpeechLM":
        """Change type or device, but keep the rotary frequencies float32: in bfloat16 far positions would blur."""
        rotary = self.backbone.rotary_emb
        exact = dict(rotary.named_buffers())
        super()._apply(fn, recurse)
        for name, changed in list(rotary.named_buffers()):
            if changed.dtype != exact[name].dtype:
                setattr(rotary, name, exact[name].to(changed.device))
        return self


def _check_width(what: str, got: int, expected: int, option: str) -> None:
    if got != expected:
        raise UserError(
            f"{what}: the batch was made for another model",
            got=got,
            expected=expected,
            next_step=f"check {option} in the run config",
        )
