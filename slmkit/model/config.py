"""What a speech language model is made of: backbone, vocabulary, codec, heads.

Saved as config.json with every checkpoint. The vocabulary layout and the codec spec travel inside it as plain values.

Invariant: a config says everything the shapes of the weights depend on.

Example:
    SpeechLMConfig(backbone=base.to_dict(), layout=layout.to_dict(), codec=spec.to_dict(), group=3)
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field
from pydantic.types import Strict
from transformers import PreTrainedConfig

from slmkit.codec.base import CodecSpec
from slmkit.config.load import Config, from_dict
from slmkit.config.values import Name, Share
from slmkit.data.vocab import VocabLayout
from slmkit.errors import UserError
from slmkit.model.architecture import check_config
from slmkit.model.backbone import DEFAULT_TYPE, backbone_config
from slmkit.model.heads.base import SpeechHead
from slmkit.model.heads.kinds import HEADS

MAX_GROUP = 1024  # heads of a model
INITIALIZER_RANGE = 0.02  # spread of new weights, where the backbone's config names none
Labels = Annotated[int, Strict(), Ge(0), Le(2**16)]


class _BackboneFile(Config):
    """The numbers of a decoder's config.json that decide how much is built; transformers checks the others."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    hidden_size: Annotated[int, Strict(), Ge(1), Le(2**16)] = Field(default=1, description="width")
    intermediate_size: Annotated[int, Strict(), Ge(1), Le(2**20)] = Field(default=1, description="inner width")
    num_hidden_layers: Annotated[int, Strict(), Ge(1), Le(2**10)] = Field(default=1, description="layers")
    num_attention_heads: Annotated[int, Strict(), Ge(1), Le(2**10)] = Field(default=1, description="heads")
    num_key_value_heads: Annotated[int, Strict(), Ge(1), Le(2**10)] | None = Field(default=None, description="of keys")
    head_dim: Annotated[int, Strict(), Ge(1), Le(2**16)] | None = Field(default=None, description="width of a head")
    vocab_size: Annotated[int, Strict(), Ge(1), Le(2**24)] = Field(default=1, description="rows of the embedding")
    max_position_embeddings: Annotated[int, Strict(), Ge(1), Le(2**31)] = Field(default=1, description="positions")
    num_labels: Labels = Field(default=2, description="names that transformers makes, of no use here")


class _ModelFile(Config):
    """Our part of a model's config.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    backbone: _BackboneFile = Field(description="values of the text model's config")
    layout: dict[str, Any] = Field(description="the vocabulary")
    codec: dict[str, Any] = Field(description="the codec")
    group: Annotated[int, Strict(), Ge(0), Le(MAX_GROUP)] = Field(default=0, description="tokens of a speech step")
    head: Name = Field(default="linear", description="kind of the speech heads")
    fusion: Literal["mean", "mlp"] = Field(default="mean", description="of the embeddings of one speech step")
    speaker_dim: Annotated[int, Strict(), Ge(0), Le(2**16)] = Field(default=0, description="width of a speaker vector")
    softmax: Literal["full", "stream"] = Field(default="full", description="softmax of next-token models")
    text_loss_weight: Share = Field(default=0.2, description="share of text in the loss")
    num_labels: Labels = Field(default=2, description="names that transformers makes, of no use here")


def check_backbone_file(values: Any, where: str) -> None:
    """Raise UserError naming the values of a decoder's config.json that are of the wrong type or absurdly large."""
    if not isinstance(values, dict):
        raise UserError(f"{where} does not hold a mapping", got=f"{values!r:.100}")
    from_dict(_BackboneFile, values, where)


def check_model_file(values: Any, where: str) -> None:
    """Raise UserError naming the values of our part of a model's config.json that are of the wrong type or range."""
    if not isinstance(values, dict):
        raise UserError(f"{where} does not hold a mapping", got=f"{values!r:.100}")
    from_dict(_ModelFile, values, where)


class SpeechLMConfig(PreTrainedConfig):
    """Configuration of `SpeechLM`. Raises UserError when the parts do not fit together."""

    model_type = "slmkit"

    backbone: dict[str, Any] | None = None  # values of the text model's config; Qwen2's without a model_type
    layout: dict[str, Any] | None = None  # VocabLayout.to_dict()
    codec: dict[str, Any] | None = None  # CodecSpec.to_dict()
    group: int = 0  # tokens of one speech step, 0 for next-token prediction
    head: str = "linear"  # kind of the speech heads: a name in HEADS
    fusion: Literal["mean", "mlp"] = "mean"  # of the embeddings of one speech step
    speaker_dim: int = 0  # width of the speaker vector, 0 for no speaker input
    softmax: Literal["full", "stream"] = (
        "full"  # NTP: full (whole vocabulary) or stream (decoupled: the rows of one stream)
    )
    text_loss_weight: float = 0.2  # MTP: share of text in the loss

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone is not None:
            backbone = backbone_config(self.backbone)
            self.backbone = {name: getattr(backbone, name) for name in _fields(type(backbone))}
            if backbone.model_type != DEFAULT_TYPE:
                self.backbone["model_type"] = backbone.model_type
            if vars(backbone).get("head_dim"):  # some architectures take one that they do not declare
                self.backbone["head_dim"] = backbone.head_dim
            self.tie_word_embeddings = backbone.tie_word_embeddings
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json; that of a plain export holds ours under our name."""
        values, unused = super().get_config_dict(*args, **kwargs)
        ours = values.get(cls.model_type, values)
        check_model_file(ours, f"{args[0]}/config.json")
        return ours, unused

    @property
    def backbone_config(self) -> Any:
        """The backbone's own transformers config, set to packed attention."""
        return backbone_config(self.backbone or {})

    @property
    def vocab_layout(self) -> VocabLayout:
        return VocabLayout.from_dict(self.layout or {})

    @property
    def codec_spec(self) -> CodecSpec:
        return CodecSpec.from_dict(self.codec or {})

    @property
    def head_class(self) -> type[SpeechHead]:
        return HEADS[self.head]

    @property
    def hidden_size(self) -> int:
        return (self.backbone or {})["hidden_size"]

    @property
    def initializer_range(self) -> float:
        return (self.backbone or {}).get("initializer_range", INITIALIZER_RANGE)

    @property
    def num_terms(self) -> int:
        """Terms of the loss: text, then one per stream (NTP) or per head (MTP)."""
        return 1 + (self.group or self.vocab_layout.num_streams)

    def check(self) -> None:
        """Raise UserError naming the first part that does not fit."""
        choices = {"head": tuple(HEADS), "fusion": ("mean", "mlp"), "softmax": ("full", "stream")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} of the model", got=getattr(self, name), expected=", ".join(known))
        layout, backbone = self.vocab_layout, self.backbone_config
        kind = "mtp" if self.group else "ntp"
        if not 0 <= self.group <= MAX_GROUP:
            raise UserError(
                "the group size is out of range",
                got=self.group,
                expected=f"0 (next-token prediction) to {MAX_GROUP}",
            )
        if layout.kind != kind:
            raise UserError(f"group {self.group} needs a vocabulary of kind {kind}", got=layout.kind, expected=kind)
        if self.group and self.softmax == "stream":
            raise UserError(
                "the stream softmax is for next-token prediction; the heads of MTP have one each",
                got=f"group {self.group}",
                next_step="set softmax to full, or group to 0",
            )
        if backbone.vocab_size < layout.size:
            raise UserError(
                "the embedding has fewer rows than the vocabulary", got=backbone.vocab_size, expected=layout.size
            )
        sizes = tuple(stream.size for stream in self.codec_spec.lm_streams)
        if sizes != layout.codebook_sizes:
            raise UserError("the codebooks of codec and vocabulary differ", got=layout.codebook_sizes, expected=sizes)
        check_config(backbone)


def _fields(kind: type[PreTrainedConfig]) -> list[str]:
    """What an architecture's config declares, its own and what it has from another architecture's."""
    declaring = [base for base in reversed(kind.__mro__) if issubclass(base, PreTrainedConfig)]
    names = (name for base in declaring if base is not PreTrainedConfig for name in base.__annotations__)
    return [name for name in dict.fromkeys(names) if not name.startswith("_") and name != "model_type"]
