"""The speech language model: a Qwen2 backbone that reads and writes text and codec codes.

Next-token prediction (group 0) has codes as ordinary tokens and no further part. Multi-token prediction reads a step
of `group` tokens as one position and predicts the next step with one head per token. The same class serves both and
every group size. Weights are named as in the published checkpoints: `lm_model.*`, `spk_emb_proj.*`, `speech_heads.*`.

Text logits are computed only where a text target is, speech heads only where a speech target is.

Shapes: N positions of a packed micro-batch, B batch and S positions of decoding, G ids per position, D width,
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
from transformers import Cache, DynamicCache, PreTrainedModel, Qwen2ForCausalLM

from slmkit.data.batch import Batch
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.model import attention, losses
from slmkit.model.attention import Packing
from slmkit.model.backbone import run_layers
from slmkit.model.config import SpeechLMConfig
from slmkit.model.heads import HEAD_LAYERS, OutputLayer, SpeechHead, class_token_ids

SPEAKER_FACTOR = 4  # inner width of the speaker projector, in speaker widths: 256 -> 1024 (published code)


class StepOutput(NamedTuple):
    """What one micro-batch gives."""

    loss: torch.Tensor  # float32 [], this micro-batch's part of the loss of the global batch
    sums: torch.Tensor  # float32 [1 + T], summed cross-entropy per term
    correct: torch.Tensor  # float32 [1 + T], targets per term that have the largest logit


class SpeechLM(PreTrainedModel):
    """See the module. Raises UserError when the parts of the config do not fit together."""

    config_class = SpeechLMConfig
    base_model_prefix = "lm_model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SpeechLMConfig) -> None:
        attention.register()
        config.check()
        super().__init__(config)
        qwen2 = config.qwen2
        self.layout: VocabLayout = config.vocab_layout
        self.lm_model = Qwen2ForCausalLM(qwen2)
        self.lm_model.lm_head = OutputLayer.of(self.lm_model.lm_head)
        self.spk_emb_proj = _speaker_projector(config.speaker_dim, qwen2.hidden_size)
        self.fusion = _fusion(config, qwen2.hidden_size)
        self.speech_heads = nn.ModuleList(
            SpeechHead(
                config.head,
                qwen2,
                num_classes=len(class_token_ids(self.layout, i)),
                first_layer=qwen2.num_hidden_layers + HEAD_LAYERS * i,
            )
            for i in range(config.group)
        )
        self._candidates = losses.candidates(self.layout, qwen2.vocab_size, config.softmax)
        self.post_init()

    @property
    def group(self) -> int:
        """Tokens of a speech step, 0 for next-token prediction."""
        return self.config.group

    @property
    def is_plain(self) -> bool:
        """Whether the weights are those of a Qwen2 causal language model and nothing more."""
        return not self.group and self.spk_emb_proj is None

    @property
    def heads(self) -> list[SpeechHead]:
        """The speech heads in the order a1 b1 c1 a2 ..., none for next-token prediction."""
        return [head for head in self.speech_heads if isinstance(head, SpeechHead)]

    def forward(self, batch: Batch) -> StepOutput:
        """Loss of one micro-batch, scaled by the target counts of its whole global batch."""
        packing = Packing(batch.cu_seqlens, batch.num_tokens)
        embedded = self.embed(batch.tokens, batch.speech_mask, batch.speaker, batch.speaker_positions)
        position_ids = batch.position_ids[None]
        hidden = self.hidden(embedded[None], position_ids, packing=packing)
        shares = losses.coefficients(batch.global_counts, group=self.group, text_weight=self.config.text_loss_weight)
        loss, sums, correct = self._lm_loss(hidden[0], batch, shares)
        for i, head in enumerate(self.heads):
            attended = head.attend(hidden, position_ids, self.lm_model.model.rotary_emb, packing=packing)
            features = head.features(attended[0, batch.head_positions])
            part = _head_loss(head.output, features, batch.head_targets[:, i], shares[1 + i])
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
        each = self.lm_model.model.embed_tokens(tokens)
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

    def hidden(
        self,
        embedded: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """Final hidden states float [B, S, D], normalized, of embedded float [B, S, D] at position_ids int64 [B, S].

        Decoding: with `cache`, the S positions follow those in it and are added to it; one call with the prompt, then
        one per step. `attention_mask` bool [B, 1, S, K], True where a position sees one of the K positions in the
        cache (these S included); needed only when sequences of unlike lengths share a batch. Training: `packing`.
        """
        qwen2 = self.lm_model.model
        hidden = run_layers(
            qwen2.layers,
            qwen2.rotary_emb,
            embedded,
            position_ids,
            packing=packing,
            cache=cache,
            attention_mask=attention_mask,
        )
        return qwen2.norm(hidden)

    def lm_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits float [..., V] of final hidden states [..., D]. V may exceed the layout's size."""
        return self.lm_model.lm_head(hidden)

    def head_logits(
        self,
        hidden: torch.Tensor,
        position_ids: torch.Tensor,
        *,
        cache: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        keep: int = 1,
    ) -> list[torch.Tensor]:
        """Class logits of every head, each float [B, keep, C], at the last `keep` positions of hidden [B, S, D].

        Transformer heads look back at all positions: give them position_ids and the cache of `hidden`, and call them
        for every stretch of positions in order, text included. Classes: `class_token_ids(layout, head)`.
        """
        logits, rotary = [], self.lm_model.model.rotary_emb
        for head in self.heads:
            attended = head.attend(hidden, position_ids, rotary, cache=cache, attention_mask=attention_mask)
            logits.append(head.output(head.features(attended[:, -keep:])))
        return logits

    def new_cache(self) -> DynamicCache:
        """An empty key-value cache, with room for the backbone's layers and the heads'."""
        return DynamicCache()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> "SpeechLM":
        """Change type or device, but keep the rotary frequencies float32: in bfloat16 far positions would blur."""
        rotary = self.lm_model.model.rotary_emb
        exact = rotary.inv_freq
        super()._apply(fn, recurse)
        if rotary.inv_freq.dtype != exact.dtype:
            rotary.inv_freq = exact.to(rotary.inv_freq.device)
        return self

    def _lm_loss(
        self, hidden: torch.Tensor, batch: Batch, shares: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        positions, targets, groups = batch.lm_positions, batch.lm_targets, batch.lm_groups
        if self.config.softmax == "stream":
            groups, order = groups.sort(stable=True)
            positions, targets = positions[order], targets[order]
            counts = groups.bincount(minlength=len(shares)).tolist()
            segments = [losses.Segment(*pair) for pair in zip(counts, self._candidates, strict=True)]
        else:
            segments = [losses.Segment(len(targets), self._candidates[0])]
        loss, nll, correct = self.lm_model.lm_head(
            hidden[positions], targets=targets, scales=shares[groups], segments=segments
        )
        num_terms = len(shares)
        return loss, losses.sum_by_term(nll, groups, num_terms), losses.sum_by_term(correct, groups, num_terms)


def _head_loss(
    output: OutputLayer, features: torch.Tensor, targets: torch.Tensor, share: torch.Tensor
) -> losses.CrossEntropy:
    segment = losses.Segment(len(targets), ((0, output.out_features),))
    return output(features, targets=targets, scales=share.expand(len(targets)), segments=[segment])


def _speaker_projector(speaker_dim: int, width: int) -> nn.Sequential | None:
    if not speaker_dim:
        return None
    inner = SPEAKER_FACTOR * speaker_dim
    return nn.Sequential(nn.Linear(speaker_dim, inner), nn.SiLU(), nn.Linear(inner, width))


def _fusion(config: SpeechLMConfig, width: int) -> nn.Sequential | None:
    """Maps the concatenated embeddings of a step to one; None for the mean."""
    if not config.group or config.fusion == "mean":
        return None
    return nn.Sequential(nn.Linear(config.group * width, width), nn.SiLU(), nn.Linear(width, width))


def _check_width(what: str, got: int, expected: int, option: str) -> None:
    if got != expected:
        raise UserError(
            f"{what}: the batch was made for another model",
            got=got,
            expected=expected,
            next_step=f"check {option} in the run config",
        )
