"""A codec, two voices and a model that speaks whatever it is asked to, all small: for tests of whole jobs."""

import hashlib
from pathlib import Path

import numpy as np
from memorising import BASE, memorise, one_batch, small_model
from synthetic import write_samples

from slmkit.audio.io import write_wav
from slmkit.codec.melvq import MelVQ
from slmkit.data.shards import Sample
from slmkit.data.text import TextTokenizer
from slmkit.model.pretrained import extended_tokenizer, save

TEXTS = ("The river froze", "Eleven lanterns along the wall", "A clock", "The last boat left the harbour")
GROUP = 3


def make_spoken(root: Path) -> Path:
    """`root` with codec/, model/ (MTP-3, speaker-aware), corpus/ (keys u0 to u3), voice.wav, voice.npy."""
    rng = np.random.default_rng(3)
    codec = MelVQ.fit([rng.normal(0, 0.1, 16_000).astype(np.float32)], 0, num_entries=16)
    codec.save(root / "codec")
    samples = []
    for i, text in enumerate(TEXTS):
        codes = rng.integers(0, 16, (3, 8 + 3 * i)).astype(np.uint16)
        vector = rng.standard_normal(codec.spec.speaker_dim).astype(np.float32)
        meta = {"text": text, "speaker": "s", "language": "en", "seconds": 0.1, "source": ""}
        samples.append(Sample(f"u{i}", codes, vector, meta))
    write_samples(root / "corpus", samples, codec.spec, codec_source=str(root / "codec"))
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, codec.spec, GROUP, speaker_dim=codec.spec.speaker_dim)
    memorise(model, one_batch(model, tokenizer, samples))
    save(model, root / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    write_wav(root / "voice.wav", rng.normal(0, 0.1, 4000), 16_000)
    np.save(root / "voice.npy", samples[0].speaker)
    return root


def hashes(out: Path) -> dict[str, str]:
    """Name -> sha256 of every file of a directory but job.json, which names the commit."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.name != "job.json")
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
