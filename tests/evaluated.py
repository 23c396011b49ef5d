"""A corpus of four short pieces of real speech by two speakers, their codec, and a model that knows them by heart: it
reads the sentences, and answers a question with each."""

from pathlib import Path

import numpy as np
import torch
from memorising import BASE, memorise, one_batch, small_model
from synthetic import write_samples

from slmkit.audio.io import read_audio
from slmkit.codec.base import to_codes
from slmkit.codec.melvq import MelVQ
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import extended_tokenizer, save

AUDIO = Path(__file__).resolve().parent.parent / "tokenize_jobs" / "sample_corpus"
RATE = 16_000
PIECE = slice(4000, 9000)


def flacs() -> list[Path]:
    """Two recordings of each of two speakers."""
    return [path for speaker in ("11", "12") for path in sorted(AUDIO.glob(f"{speaker}/*/*.flac"))[:2]]


def make_chain(root: Path, *, max_steps: int = 250) -> Path:
    """`codec`, `corpus` and `model` in `root`; for no steps the model knows nothing."""
    codec = MelVQ.fit([read_audio(path, RATE) for path in sorted(AUDIO.glob("1[12]/*/*.flac"))], seed=0)
    codec.save(root / "codec")
    samples = []
    for path in flacs():
        piece = torch.from_numpy(read_audio(path, RATE)[PIECE])
        encoded = codec.encode(piece[None], torch.tensor([len(piece)]))
        text = path.with_suffix(".normalized.txt").read_text().strip()
        meta = {"text": text, "speaker": path.stem[:2], "language": "en", "seconds": len(piece) / RATE}
        meta |= {"source": path.name, "question": f"What of {path.stem}?", "answers": [text, "another"]}
        samples.append(Sample(path.stem, to_codes(encoded.codes[0]), encoded.speaker[0].numpy(), meta))
    write_samples(root / "corpus", samples, codec.spec)
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, codec.spec, 3, speaker_dim=codec.spec.speaker_dim)
    tasks = ["tts"] * len(samples) + ["qa"] * len(samples)
    if max_steps:
        memorise(model, one_batch(model, tokenizer, [*samples, *samples], tasks), max_steps=max_steps)
    save(model, root / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    return root


def codes_of(directory: Path) -> list[np.ndarray]:
    """Stored codes of an evaluation, in order."""
    return [np.load(path, allow_pickle=False) for path in sorted((directory / "codes").glob("*.npy"))]
