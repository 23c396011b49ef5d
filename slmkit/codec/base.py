"""What a speech codec is to the rest of slmkit.

A codec turns mono audio into `K` parallel streams of integer codes, one entry per stream and frame, and one speaker
vector per utterance. The language model sees only the `CodecSpec`. Streams whose role is not "detail" come first, in
the order the language model interleaves them (a, b, c, ...); detail streams exist for reconstruction only.

Shapes: B utterances, N samples, K streams, T frames, D speaker width.

Invariant (law): codes and speaker vector of an utterance do not depend on the batch it travels in, its place there, or
its padding.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le, MaxLen, MinLen
from pydantic import Field
from pydantic.types import Strict

from slmkit.config.load import Config, from_dict
from slmkit.config.values import Name, Takes, Text
from slmkit.errors import UserError

if TYPE_CHECKING:  # a corpus is planned, indexed and looked at without torch
    import torch

Role = Literal["prosody", "content", "semantic", "detail", "coupled"]
Codes = npt.NDArray[np.uint16]  # [K, T], of one utterance: what shards, models and jobs have; torch has int32
MAX_LM_STREAMS = 32  # of the language model


@dataclass(frozen=True)
class Stream:
    """One stream of codes: entries 0 .. size - 1."""

    name: str
    size: int
    role: Role


@dataclass(frozen=True, kw_only=True)
class CodecSpec:
    """Everything the language model and the shards know of a codec."""

    name: str
    sample_rate: int  # Hz
    hop_samples: int  # samples per frame
    streams: tuple[Stream, ...]
    speaker_dim: int  # width of the speaker vector, 0 when there is none
    weights_sha256: str  # of the codec's weights, "" when unknown (imported codes)
    speaker_sha256: str = ""  # of the separate encoder that makes the speaker vectors, "" where it is the codec's own

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_samples

    @property
    def decodes_voice(self) -> bool:
        """Whether the codec decodes with the speaker vector; vectors of a separate encoder are the language model's."""
        return self.speaker_dim > 0 and not self.speaker_sha256

    @property
    def lm_streams(self) -> tuple[Stream, ...]:
        """The streams the language model predicts, in its order."""
        return tuple(stream for stream in self.streams if stream.role != "detail")

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `speaker_sha256` only where there is one, as before there were any."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return values if self.speaker_sha256 else {k: v for k, v in values.items() if k != "speaker_sha256"}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "CodecSpec":
        """Inverse of `to_dict`.

        Raises UserError when fields are missing, unknown, of the wrong kind or out of range, or the language model
        would have more than MAX_LM_STREAMS streams.
        """
        next_step = "use a codec_spec.json that slmkit wrote"
        if not isinstance(values, dict):
            raise UserError("not a codec spec", got=f"{values!r:.100}", next_step=next_step)
        from_dict(_CodecSpecFile, values, "not a codec spec")
        spec = CodecSpec(**{**values, "streams": tuple(Stream(**stream) for stream in values["streams"])})
        check_num_streams(len(spec.lm_streams), f"the codec {spec.name}")
        return spec

    @property
    def sha256(self) -> str:
        """Hash of all fields."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def check_compatible(self, other: "CodecSpec", *, this: str, that: str) -> None:
        """Raise UserError naming the first field in which the two specs differ.

        An empty hash (of imported codes, whose maker is not known, or where the codec makes the vectors) matches any.
        Detail streams may be absent on one side: the language model does not see them.
        """
        mine, theirs = (dataclasses.asdict(dataclasses.replace(s, streams=s.lm_streams)) for s in (self, other))
        for name in mine:
            unknown = name.endswith("_sha256") and "" in (mine[name], theirs[name])
            absent = name == "speaker_dim" and 0 in (mine[name], theirs[name])
            if mine[name] != theirs[name] and not unknown and not absent:
                raise UserError(
                    f"the codec of {that} is not the codec of {this}: {name} differs",
                    got=theirs[name],
                    expected=mine[name],
                    next_step="use the codec that made the codes",
                )


class _StreamFile(Config):
    """A stream, as files have it."""

    name: Name = Field(description="name of the stream")
    size: Annotated[int, Strict(), Ge(1), Le(2**16)] = Field(description="entries of the codebook")
    role: Role = Field(description="what its codes say")


class _CodecSpecFile(Config):
    """A codec spec, as files have it."""

    name: Name = Field(description="name of the codec")
    sample_rate: Annotated[int, Strict(), Ge(1), Le(10**6)] = Field(description="samples per second")
    hop_samples: Annotated[int, Strict(), Ge(1), Le(10**6)] = Field(description="samples per frame")
    streams: Annotated[tuple[_StreamFile, ...], MinLen(1), MaxLen(256), Takes("a list of 1 to 256 streams")] = Field(
        description="streams of codes"
    )
    speaker_dim: Annotated[int, Strict(), Ge(0), Le(2**16)] = Field(description="width of the speaker vector")
    weights_sha256: Text = Field(description="hash of the weights")
    speaker_sha256: Text = Field(default="", description="hash of the separate speaker encoder")


def check_num_streams(number: int, where: str) -> None:
    """Raise UserError where the language model would have more streams than there are letters for their tokens."""
    if number > MAX_LM_STREAMS:
        raise UserError(
            f"{where} has too many streams for a language model",
            got=f"{number} streams",
            expected=f"at most {MAX_LM_STREAMS}",
            next_step="give the last streams of the codec the role detail, or encode with fewer codebooks",
        )


class Encoded(NamedTuple):
    """What `Codec.encode` returns."""

    codes: "torch.Tensor"  # int32 [B, K, T], 0 beyond an utterance's frames
    num_frames: "torch.Tensor"  # int64 [B]
    speaker: "torch.Tensor"  # float32 [B, D]


class Reach(NamedTuple):
    """How far codes matter: the samples of frame t depend on codes of frames t - before .. t + after, and no others.

    None: on everything on that side.
    """

    before: int | None
    after: int | None


class Codec(Protocol):
    """A codec ready to run on one device. One with recurrent layers says in `decoding_stages` (`StagedCodec`) how its
    decoding goes on piece by piece; one that does not is decoded in windows of `reach_frames`."""

    @property
    def spec(self) -> CodecSpec: ...

    @property
    def device(self) -> "torch.device": ...

    @property
    def reach_frames(self) -> Reach:
        """Of `decode`."""
        ...

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples give; 0 when they are too few to encode."""
        ...

    def encode(self, waves: "torch.Tensor", num_samples: "torch.Tensor") -> Encoded:
        """Codes of `waves`, float32 [B, N] in [-1, 1], of which utterance i has num_samples[i] (int64 [B]) samples.

        Raises ValueError when an utterance is too short to give a frame.
        """
        ...

    def decode(self, codes: "torch.Tensor", speaker: "torch.Tensor") -> "torch.Tensor":
        """Waves float32 [B, T * hop] in [-1, 1] of codes int [B, K or len(lm_streams), T], speaker float32 [B, D].

        With only the language model's streams given, the detail streams are left out.
        Raises ValueError when a code is outside its stream's codebook.
        """
        ...


def check_waves(codec: Codec, waves: "torch.Tensor", counts: Sequence[int]) -> list[int]:
    """The frames of utterances of `counts` samples in `waves` [B, N].

    Raises ValueError unless there is a count for each row, none more than N, and all enough for a frame.
    """
    if waves.dim() != 2 or len(counts) != len(waves):
        raise ValueError(f"waves {list(waves.shape)} are not [B, N] with B = {len(counts)} lengths")
    num_frames = [codec.num_frames(count) for count in counts]
    for i, (count, frames) in enumerate(zip(counts, num_frames, strict=True)):
        if frames < 1:
            raise ValueError(f"utterance {i} of {count} samples is too short to give a frame")
        if count > waves.shape[1]:
            raise ValueError(f"utterance {i} has {count} samples in a row of {waves.shape[1]}")
    return num_frames


def check_codes(codes: "torch.Tensor", spec: CodecSpec) -> None:
    """Raise ValueError unless codes are integers [B, K or len(lm_streams), T] within the codebooks of their streams."""
    import torch

    numbers = {len(spec.streams), len(spec.lm_streams)}
    if codes.ndim != 3 or codes.shape[1] not in numbers:
        raise ValueError(f"codes {list(codes.shape)} are not [B, {' or '.join(map(str, sorted(numbers)))}, T]")
    if codes.is_floating_point() or codes.dtype == torch.bool:
        raise ValueError(f"codes are {codes.dtype}, not integers")
    if not codes.numel():
        return
    streams = spec.streams if codes.shape[1] == len(spec.streams) else spec.lm_streams
    lowest, highest = torch.stack([codes.amin(dim=(0, 2)), codes.amax(dim=(0, 2))]).tolist()  # one read of a device
    for stream, low, high in zip(streams, lowest, highest, strict=True):
        if low < 0 or high >= stream.size:
            raise ValueError(f"codes of stream {stream.name} are {low} to {high}, not 0 to {stream.size - 1}")


def to_codes(numbers: npt.ArrayLike) -> Codes:
    """Whole numbers as codes of the same shape. Raises ValueError where one is negative, or above 65 535."""
    numbers = np.asarray(numbers)
    most = np.iinfo(np.uint16).max
    if numbers.size and not 0 <= numbers.min() <= numbers.max() <= most:
        raise ValueError(f"codes are {numbers.min()} to {numbers.max()}, not 0 to {most}")
    return numbers.astype(np.uint16)


def to_tensor(codes: Codes) -> "torch.Tensor":
    """Codes as int32 of the same shape: torch has few operations for numbers of 16 bits without sign."""
    import torch

    return torch.from_numpy(codes.astype(np.int32))


def decode_alone(codec: Codec, codes: Codes, speaker: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Wave float32 [N] of the codes uint16 [K, T] of one utterance in the voice of speaker float32 [D]."""
    import torch

    with torch.inference_mode():
        batch = (tensor[None].to(codec.device) for tensor in (to_tensor(codes), torch.from_numpy(speaker)))
        return codec.decode(*batch)[0].float().cpu().numpy()
