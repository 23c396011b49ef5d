"""The built-in spectral codec: residual vector quantization of log-mel frames, fitted to the user's own audio.

It is for trying out and testing: it needs nothing downloaded and a few seconds to fit, and a recorded sentence stays
intelligible, but it sounds like a vocoder. Streams a, b, c are the stages of the quantizer, each refining the one
before ("coupled"); a codec may have the first one or two alone, which are then those of the codec with three. The
speaker vector is the utterance's mean log-mel spectrum relative to the corpus's, so its width is the number of mel
bands; the codes hold what is left of each frame without it. Phase is made up by Griffin-Lim.

Shapes: B utterances, N samples, K streams (1 to 3), T frames, M = 80 mel bands (also the speaker width D), E entries.

Invariants: an utterance is analysed alone, from a copy of its own samples, so its codes and speaker vector are the same
in every batch, place and padding; equal audio and seed give a byte-identical codec.

Not done: sample rates other than 16 kHz; a decoder that learns phase.

Example:
    codec = MelVQ.fit(waves, seed=0)
    codec.save("my_codec")
    codes, num_frames, speaker = MelVQ.load("my_codec", "cpu").encode(waves, num_samples)
"""

import dataclasses
import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch

from slmkit.audio import units
from slmkit.audio.mel import Grid, LogMel, griffin_lim, griffin_lim_reach, invert_mel, mel_filterbank
from slmkit.codec.base import CodecSpec, Encoded, Reach, Stream, check_codes, check_waves
from slmkit.codec.open import Preset, register_codec
from slmkit.codec.stages import Windowed, run_in_pieces
from slmkit.errors import UserError
from slmkit.files import atomic_write, read_json, write_json

WEIGHTS_FILE = "melvq.safetensors"
SPEC_FILE = "codec_spec.json"
NAME = "melvq"
SAMPLE_RATE = 16_000  # Hz
GRID = Grid(n_fft=1024, window=800, hop=200)  # 80 frames per second under a 50 ms window
NUM_BANDS = 80
STREAM_NAMES = ("a", "b", "c")
NUM_ENTRIES = 1024
FLOOR = 1e-3  # smallest mel magnitude told from silence; a full-scale sine has about 1
MAX_FIT_FRAMES = 65_536  # about 14 minutes; of more, a random part is used
FIT_ROUNDS = 12  # Lloyd iterations per stage; later ones change the error by less than 1 %
PIECE_FRAMES = 2400  # decoded at once
CHUNK_FRAMES = 1024  # frames compared with a codebook at a time, for the processor's cache
INVERSION_ROUNDS = 30
GRIFFIN_LIM_ROUNDS = 24  # more than 16 no longer help intelligibility
# Frames overlap fourfold, so neighbours share most of their samples: what differs quickly is quantization noise.
SMOOTHING = (0.25, 0.5, 0.25)


class MelVQ:
    """A fitted codec; see `slmkit.codec.base.Codec` for the methods it shares with other codecs."""

    def __init__(self, codebooks: torch.Tensor, average: torch.Tensor, device: str | torch.device = "cpu") -> None:
        """`codebooks` float32 [K, E, M]; `average` float32 [M], the corpus's mean log-mel spectrum."""
        self.device = torch.device(device)
        self._weights = {"average": average.cpu().contiguous(), "codebooks": codebooks.cpu().contiguous()}
        self._codebooks, self._average = codebooks.to(self.device), average.to(self.device)
        self._biases = [_bias(book) for book in self._codebooks]
        window = GRID.weights(torch.zeros(1, device=self.device))
        self._mel = LogMel(
            grid=GRID,
            window=window,
            bank=torch.from_numpy(mel_filterbank(SAMPLE_RATE, GRID.n_fft, NUM_BANDS)).float().to(self.device),
            floor=FLOOR,
            full_scale=float(GRID.weights(torch.zeros(1)).sum() / 2),
        )
        self.spec = CodecSpec(
            name=NAME,
            sample_rate=SAMPLE_RATE,
            hop_samples=GRID.hop,
            streams=tuple(Stream(name, codebooks.shape[1], "coupled") for name in STREAM_NAMES[: len(codebooks)]),
            speaker_dim=NUM_BANDS,
            weights_sha256=hashlib.sha256(safetensors.torch.save(self._weights)).hexdigest(),
        )

    @staticmethod
    def fit(
        waves: Iterable[np.ndarray],
        seed: int,
        *,
        num_entries: int = NUM_ENTRIES,
        num_streams: int = len(STREAM_NAMES),
    ) -> "MelVQ":
        """Fit a codec of 1 to 3 streams to `waves`, each float32 [samples] at 16 kHz. Runs on the CPU.

        Raises UserError when all waves together have fewer frames than a codebook has entries.
        """
        blank = MelVQ(torch.zeros(len(STREAM_NAMES), 1, NUM_BANDS), torch.zeros(NUM_BANDS))
        utterances = [blank._log_mel(torch.from_numpy(wave)) for wave in waves if blank.num_frames(len(wave))]
        num_frames = sum(len(frames) for frames in utterances)
        if num_frames < num_entries:
            least, got = (units.frames_to_seconds(n, SAMPLE_RATE, GRID.hop) for n in (num_entries, num_frames))
            raise UserError(
                "too little audio to fit a codec",
                got=f"{got:.1f} s",
                expected=f"at least {least:.1f} s, better some minutes",
                next_step="add audio files",
            )
        generator = torch.Generator().manual_seed(seed)
        average = torch.cat(utterances).mean(0)
        frames = torch.cat([frames - frames.mean(0) for frames in utterances])
        frames = frames[torch.randperm(num_frames, generator=generator)[:MAX_FIT_FRAMES]]
        return MelVQ(_fit_codebooks(frames, num_entries, num_streams, generator), average)

    def save(self, directory: str | Path, *, replace: bool = False) -> None:
        """Write the weights, then the spec. Raises UserError when they are there already and `replace` is not set."""
        with atomic_write(Path(directory) / WEIGHTS_FILE, replace=replace) as file:
            file.write(safetensors.torch.save(self._weights))
        write_json(Path(directory) / SPEC_FILE, self.spec.to_dict(), replace=replace)

    @staticmethod
    def load(directory: str | Path, device: str | torch.device = "cpu") -> "MelVQ":
        """Inverse of `save`. Raises UserError when a file is missing, damaged, or not the one the spec names."""
        spec = CodecSpec.from_dict(read_json(Path(directory) / SPEC_FILE))
        weights = _read_weights(Path(directory) / WEIGHTS_FILE, spec)
        codec = MelVQ(weights["codebooks"], weights["average"], device)
        if codec.spec != dataclasses.replace(spec, weights_sha256=codec.spec.weights_sha256):
            raise UserError(
                f"{SPEC_FILE} in {directory} does not describe this codec",
                got=spec.to_dict(),
                expected=codec.spec.to_dict(),
                next_step="fit the codec again, or restore both files together",
            )
        return codec

    @property
    def reach_frames(self) -> Reach:
        """As `Codec.reach_frames`. Most of it is Griffin-Lim's; where the sound hardly changes, all of it is heard."""
        reach = len(SMOOTHING) // 2 + griffin_lim_reach(GRID, GRIFFIN_LIM_ROUNDS)
        return Reach(reach, reach)

    def num_frames(self, num_samples: int) -> int:
        """Frames that `num_samples` samples give: the nearest number of hops."""
        return units.samples_to_frames(num_samples, GRID.hop)

    def encode(self, waves: torch.Tensor, num_samples: torch.Tensor) -> Encoded:
        """As `Codec.encode`."""
        lengths = num_samples.tolist()
        num_frames = check_waves(self, waves, lengths)
        codes = torch.zeros(len(lengths), len(self._codebooks), max(num_frames), dtype=torch.int32, device=self.device)
        speaker = torch.zeros(len(lengths), NUM_BANDS, device=self.device)
        on_device = torch.tensor(num_frames, device=self.device)  # now: later it would wait for what is computed
        for i, length in enumerate(lengths):
            frames = self._log_mel(waves[i, :length].to(self.device).clone())
            mean = frames.mean(0)
            speaker[i] = mean - self._average
            codes[i, :, : num_frames[i]] = _quantize(frames - mean, self._codebooks, self._biases)
        return Encoded(codes, on_device, speaker)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """As `Codec.decode`; all streams are the language model's. Long codes are decoded in pieces."""
        check_codes(codes, self.spec)
        if not codes.numel():
            return torch.zeros(len(codes), 0, device=self.device)
        stage = Windowed(lambda part: self._decode(part, speaker), self.reach_frames, outputs_per_frame=GRID.hop)
        return run_in_pieces([stage], codes.to(self.device), piece_frames=PIECE_FRAMES)[:, 0]

    def _decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        """[B, K, T] -> waves [B, 1, T * hop]."""
        stages = codes.long().unbind(1)
        frames = torch.stack([book[stage] for book, stage in zip(self._codebooks, stages, strict=True)]).sum(0)
        log_mel = _smooth(frames) + (speaker.to(self.device, torch.float32) + self._average)[:, None]
        magnitudes = invert_mel(log_mel.exp() * self._mel.full_scale, self._mel.bank, iterations=INVERSION_ROUNDS)
        return griffin_lim(magnitudes, GRID, iterations=GRIFFIN_LIM_ROUNDS).clamp(-1.0, 1.0)[:, None]

    @torch.no_grad()
    def _log_mel(self, wave: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of mel magnitudes, float32 [T, M], of one utterance [N]."""
        return self._mel.of(wave.float(), self.num_frames(len(wave)))


def _fit_codebooks(
    frames: torch.Tensor, num_entries: int, num_streams: int, generator: torch.Generator
) -> torch.Tensor:
    """One codebook per stream, float32 [K, E, M], each fitted to what those before leave of `frames` [n, M]."""
    books = []
    for _ in range(num_streams):
        book = _k_means(frames, num_entries, generator)
        books.append(book)
        frames = _unseen_residual(frames, book)
    return torch.stack(books)


def _k_means(points: torch.Tensor, num_entries: int, generator: torch.Generator) -> torch.Tensor:
    """Lloyd's algorithm from random points; an entry nobody chose moves to one of the worst served points."""
    book = points[torch.randperm(len(points), generator=generator)[:num_entries]].clone()
    for _ in range(FIT_ROUNDS):
        nearest = _nearest(points, book)
        error = (points - book[nearest]).square().sum(1)
        counts = torch.bincount(nearest, minlength=num_entries)
        sums = torch.zeros(book.shape, dtype=torch.float64).index_add_(0, nearest, points.double())
        book = (sums / counts.clamp(min=1)[:, None]).float()
        unused = (counts == 0).nonzero()[:, 0]
        book[unused] = points[error.argsort(descending=True, stable=True)[: len(unused)]]
    return book


def _unseen_residual(points: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """What `book` would leave of each point had it been fitted without that point.

    With few points per entry the plain residual is far smaller than that of new audio, and the next stage would learn
    too small a scale. Without its point, the mean of n points lies n / (n - 1) times as far away; an entry of one point
    would not be there, so the next nearest serves.
    """
    nearest = _nearest(points, book)
    counts = torch.bincount(nearest, minlength=len(book))[nearest, None]
    chunks = points.split(CHUNK_FRAMES)
    second = torch.cat([_scores(chunk, book, _bias(book)).topk(2, dim=1).indices[:, 1] for chunk in chunks])
    shared = (points - book[nearest]) * counts / (counts - 1).clamp(min=1)
    return torch.where(counts > 1, shared, points - book[second])


def _quantize(frames: torch.Tensor, codebooks: torch.Tensor, biases: list[torch.Tensor]) -> torch.Tensor:
    """Codes int64 [K, T] of frames float32 [T, M], stage by stage; `biases` are those of the books."""
    codes = []
    for book, bias in zip(codebooks, biases, strict=True):
        nearest = _nearest(frames, book, bias)
        codes.append(nearest)
        frames = frames - book[nearest]
    return torch.stack(codes)


def _nearest(points: torch.Tensor, book: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Index int64 [n] of the entry of `book` [E, M] nearest to each of `points` [n, M]."""
    bias = _bias(book) if bias is None else bias
    return torch.cat([_scores(chunk, book, bias).argmax(1) for chunk in points.split(CHUNK_FRAMES)])


def _scores(points: torch.Tensor, book: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Nearness [n, E]: minus half the squared distance, up to a constant per point."""
    return torch.addmm(bias, points, book.T)


def _bias(book: torch.Tensor) -> torch.Tensor:
    """What nearness to each entry has of the entry alone, [E]."""
    return -book.square().sum(1) / 2


def _smooth(frames: torch.Tensor) -> torch.Tensor:
    """Each frame of [B, T, M] averaged with its neighbours by `SMOOTHING`; the ends repeat."""
    before, here, after = SMOOTHING
    padded = torch.cat([frames[:, :1], frames, frames[:, -1:]], dim=1)
    return before * padded[:, :-2] + here * padded[:, 1:-1] + after * padded[:, 2:]


def _read_weights(path: Path, spec: CodecSpec) -> dict[str, torch.Tensor]:
    """The tensors in `path`, checked against the hash in `spec` and for shape, type and value."""
    try:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if found != spec.weights_sha256:
            raise UserError(
                f"{path} is not the file its {SPEC_FILE} names: damaged or from another codec",
                got=f"sha256 {found}",
                expected=f"sha256 {spec.weights_sha256}",
                next_step="copy both files again, or fit the codec again",
            )
        weights = safetensors.torch.load(data)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}", expected=f"the {WEIGHTS_FILE} of a fitted codec") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    entries, num_streams = spec.streams[0].size if spec.streams else 0, min(len(spec.streams), len(STREAM_NAMES))
    expected = {"average": (NUM_BANDS,), "codebooks": (num_streams, entries, NUM_BANDS)}
    if shapes != expected or not all(t.dtype == torch.float32 and t.isfinite().all() for t in weights.values()):
        raise UserError(f"{path} does not hold a {NAME} codec", got=shapes, expected=f"finite float32 {expected}")
    return weights


PRESETS = (Preset("melvq", SAMPLE_RATE, GRID.hop, f"1 to {len(STREAM_NAMES)} of {NUM_ENTRIES}", True, "fitted by you"),)
register_codec(NAME, (WEIGHTS_FILE, SPEC_FILE), MelVQ.load, presets=PRESETS)
