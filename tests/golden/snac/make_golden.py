"""Makes the golden files of SNAC with the published code, snac 1.2.1 from PyPI, which needs einops.

    pip install --no-deps --target SITE snac==1.2.1 einops
    PYTHONPATH=.:tests:SITE python tests/golden/snac/make_golden.py

Each file holds, for one of the tiny models of tests/codec/tiny_snac.py: `wave_int16` [N], the codes of each level
`codes_I` int16, `decoded` float32 [n], the wave of these codes, and the codebooks by their names; the other weights are
a function of their names. Where the published decoder draws random noise it is given that of slmkit, so that the waves
can be compared; nothing else of slmkit takes part.
"""

from pathlib import Path
from unittest import mock

import numpy as np
import snac
import torch
from codec import tiny_snac
from seeded_weights import wave

from slmkit.codec.snac.network import normal_noise

HERE = Path(__file__).resolve().parent
SECONDS = {"convolutions": 0.8, "windows": 0.6}


def main() -> None:
    torch.set_num_threads(1)
    for kind, config in tiny_snac.CONFIGS.items():
        model = snac.SNAC(**config).eval()
        state = tiny_snac.published_state(tiny_snac.CONFIGS[kind])
        model.load_state_dict(state)
        heard = wave(SECONDS[kind], seed=3, sample_rate=config["sampling_rate"])
        layers = iter(range(len(config["decoder_rates"])))

        def noise(shape: tuple[int, ...], *, layers: object = layers, **_: object) -> torch.Tensor:
            return normal_noise(next(layers), 0, shape[-1]).expand(shape)

        with torch.inference_mode(), mock.patch("torch.randn", noise):
            codes = model.encode(torch.from_numpy(heard.astype(np.float32) / 32768)[None, None])
            decoded = model.decode(codes)[0, 0].numpy()
        assert next(layers, None) is None
        levels = {f"codes_{i}": level[0].numpy().astype(np.int16) for i, level in enumerate(codes)}
        books = {name: value.numpy() for name, value in state.items() if name.endswith("codebook.weight")}
        np.savez_compressed(HERE / f"{kind}.npz", wave_int16=heard, decoded=decoded, **levels, **books)
        used = [len(np.unique(level)) for level in levels.values()]
        print(kind, "entries used", used, "loudness", decoded.std(), np.abs(decoded).max())


if __name__ == "__main__":
    main()
