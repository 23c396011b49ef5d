"""Waves to codes, in batches of like length, in the order they came.

Shapes: B utterances of a batch, N samples, K streams, T frames, D speaker width.

Invariant: since a codec treats each utterance by itself, window and batch size change the speed and nothing else.

Example:
    batches([30, 10, 20], budget=40)        # [[1, 2], [0]]: positions, shortest first, longest * count <= budget
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from slmkit.codec.base import Codec, Codes, to_codes
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample
from slmkit.errors import BadSample, UserError
from slmkit.tokenization.decode import Decoded, significant


def encode_in_order(
    codec: Codec,
    results: Iterable[Decoded | Failure],
    *,
    window: int,
    batch_samples: int,
    advance: Callable[[int, float], None] = lambda items, seconds: None,
) -> Iterator[Sample | Failure]:
    """Encode every decoded utterance; failures pass through. At most `window` results are held at a time.

    `advance` is told after each batch how many items are done, and the seconds of their audio.
    """
    results = iter(results)
    while held := [_long_enough(codec, result) for result in itertools.islice(results, window)]:
        done: dict[int, Sample | Failure] = {place: r for place, r in enumerate(held) if isinstance(r, Failure)}
        advance(len(done), 0.0)
        decoded = [(place, r) for place, r in enumerate(held) if isinstance(r, Decoded)]
        for batch in batches([len(r.wave) for _, r in decoded], batch_samples):
            samples = _encode_batch(codec, [decoded[i][1] for i in batch])
            done.update(zip((decoded[i][0] for i in batch), samples, strict=True))
            advance(len(samples), sum(sample.meta["seconds"] for sample in samples))
        yield from (done[place] for place in range(len(held)))


def batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of `lengths` grouped by length so that longest * count <= budget, at least one in each group."""
    groups: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if groups and lengths[position] * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def _long_enough(codec: Codec, result: Decoded | Failure) -> Decoded | Failure:
    if isinstance(result, Failure) or codec.num_frames(len(result.wave)) > 0:
        return result
    error = BadSample("too_short", "the audio is too short for the codec", got=f"{len(result.wave)} samples")
    return Failure.of(result.utterance.key, error)


def _encode_batch(codec: Codec, batch: list[Decoded]) -> list[Sample]:
    """Encode a batch; when the device has no memory for it, its halves."""
    try:
        return _encode(codec, batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            seconds = len(batch[0].wave) / codec.spec.sample_rate
            raise UserError(
                f"{codec.device} has no memory to encode {batch[0].utterance.key}",
                got=f"{seconds:.1f} s of audio",
                next_step="lower max_sec, free the device, or run on another",
            ) from error
    half = len(batch) // 2
    return _encode_batch(codec, batch[:half]) + _encode_batch(codec, batch[half:])


@torch.inference_mode()
def _encode(codec: Codec, batch: list[Decoded]) -> list[Sample]:
    num_samples = torch.tensor([len(decoded.wave) for decoded in batch])
    waves = torch.zeros(len(batch), int(num_samples.max()))
    for row, decoded in zip(waves, batch, strict=True):
        row[: len(decoded.wave)] = torch.from_numpy(decoded.wave)
    encoded = codec.encode(waves.to(codec.device), num_samples)  # lengths are for the host
    codes, num_frames, speaker = (tensor.cpu().numpy() for tensor in encoded)
    has_speaker = codec.spec.speaker_dim > 0
    return [
        _sample(codec, decoded, to_codes(codes[i, :, : num_frames[i]]), speaker[i] if has_speaker else None)
        for i, decoded in enumerate(batch)
    ]


def _sample(codec: Codec, decoded: Decoded, codes: Codes, speaker: np.ndarray | None) -> Sample:
    utterance = decoded.utterance
    seconds = len(decoded.wave) / codec.spec.sample_rate
    frames_off = codes.shape[1] - seconds * codec.spec.frame_rate
    meta = {
        **utterance.extra,
        "text": decoded.text,
        "speaker": utterance.speaker,
        "language": utterance.language,
        "seconds": seconds,
        "source": utterance.source,
        "checks": {**decoded.checks, "frames_off": significant(frames_off)},
    }
    return Sample(utterance.key, codes, speaker, meta)
