"""What a wave tells about a recording: level, offset, silence, clipping, and where it is quietest.

Pure functions of numbers, at the file's own sample rate: resampling would round off what was clipped.

Shapes: N samples, C channels.

Example:
    quietest(wave, 320, low=8000, high=9600, prefer_last=True)      # a sample from 8000 to 9600 to cut at
"""

import numpy as np

from slmkit.audio.units import seconds_to_samples

QUIET_FRAME_SEC = 0.02
FRAMES_AT_A_TIME = 4096
SILENCE_LEVEL = 1e-3  # root mean square, of full scale: -60 dB; below it a frame counts as silence
EQUALLY_QUIET = 1e-5  # of full scale, -100 dB: frames this much apart, by their root mean square, count as equal
# An offset is a fault of the recording device and carries no sound, but it moves the spectrum a codec sees and clicks
# where a piece begins. Up to 1 % of full scale neither matters, and the samples stay those of the file.
OFFSET_LIMIT = 0.01
# Microphones wired in opposite ways cancel each other. One speaker on one of 32 channels keeps 1/32 in the mean.
CANCELLED_SHARE = 0.03
FULL_SCALE = {  # largest sample each way of writing can hold; 1 for all others
    "PCM_S8": 127 / 128,
    "PCM_U8": 127 / 128,
    "PCM_16": 32767 / 32768,
    "PCM_24": 8388607 / 8388608,
    "ULAW": 32124 / 32768,
    "ALAW": 32256 / 32768,
}


def clipped(block: np.ndarray, subtype: str) -> np.ndarray:
    """Whether any channel of a sample is at full scale: block float32 [N, C] -> bool [N]."""
    return (np.abs(block) >= FULL_SCALE.get(subtype, 1.0)).any(axis=1)


def silence_share(wave: np.ndarray, sample_rate: int) -> float:
    """Share of whole 20 ms frames of `wave`, float32 [N], below SILENCE_LEVEL; a shorter wave is one frame.

    Around each frame's own mean: an offset too small to be removed is no sound.
    """
    width = min(len(wave), frame_samples(sample_rate))
    frames = wave[: len(wave) // width * width].reshape(-1, width)
    # In parts, since the variance takes several times the memory of what it is given.
    quiet = (
        frames[i : i + FRAMES_AT_A_TIME].var(axis=1, dtype=np.float64) < SILENCE_LEVEL**2
        for i in range(0, len(frames), FRAMES_AT_A_TIME)
    )
    return sum(int(part.sum()) for part in quiet) / len(frames)


def frame_samples(sample_rate: int) -> int:
    """Samples in 20 ms, at least one."""
    return max(1, seconds_to_samples(QUIET_FRAME_SEC, sample_rate))


def cancelled(mono_energy: float, channel_energy: np.ndarray) -> bool:
    """Whether the mean of the channels has lost the sound, by the energies of both, without their offsets."""
    return bool(mono_energy < CANCELLED_SHARE**2 * channel_energy.max())


def quietest(wave: np.ndarray, width: int, *, low: int, high: int, prefer_last: bool) -> int:
    """The middle of the quietest `width` samples of `wave`, float32 [N], that lie within [low, high).

    Of equally quiet places the last or the first. Where fewer than `width` samples lie there, the middle of them.
    Always low <= result <= high.
    """
    if high - low < width:
        return (low + high) // 2
    energy = np.concatenate([[0.0], np.cumsum(np.square(wave[low:high], dtype=np.float64))])
    sums = energy[width:] - energy[:-width]
    places = np.flatnonzero(sums <= sums.min() + width * EQUALLY_QUIET**2)
    return low + int(places[-1 if prefer_last else 0]) + width // 2
