"""Speech samples for TensorBoard while a model is in training.

Example:
    train(config, speak=SpeechSamples(codec="CODEC", tokenizer="BASE", corpus="SHARDS"))
"""

from pathlib import Path
from typing import Any

import torch

from slmkit.codec.open import open_codec
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.model.slm import SpeechLM

MAX_SEC = 12.0  # of a sample; an untrained model would speak without end


class SpeechSamples:
    """Speaks the first sentences of a corpus, each in its own voice, beside the codec's copy of the true speech."""

    def __init__(self, *, codec: str | Path, tokenizer: str | Path, corpus: str | Path, number: int = 2) -> None:
        """Raises UserError when a part is missing, or the codes are not of this codec."""
        self.codec, self.tokenizer = open_codec(codec), TextTokenizer.load(tokenizer)
        opened = Corpus.open(corpus)
        opened.codec.check_compatible(self.codec.spec, this=str(corpus), that=str(codec))
        reader = ShardReader(opened)
        self.samples = [reader.read(i) for i in range(min(number, len(opened)))]
        if any(sample.speaker is None for sample in self.samples):
            raise UserError("speech samples need speaker vectors, and the corpus has none", got=corpus)

    def __call__(self, model: SpeechLM, writer: Any, step: int) -> None:
        """Add the audio of `step` to TensorBoard's `writer`; the model goes on in the mode it was in."""
        was_training = model.training
        synthesizer = Synthesizer(model, self.tokenizer, self.codec)
        rate = self.codec.spec.sample_rate
        for sample in self.samples:
            assert sample.speaker is not None, "checked at the start"
            voice = torch.from_numpy(sample.speaker)
            codes = synthesizer.generate(sample.meta["text"], sample.speaker, max_sec=MAX_SEC).codes
            if codes.shape[1]:
                writer.add_audio(f"speech/{sample.key}", synthesizer.decode(codes, voice), step, sample_rate=rate)
            true = synthesizer.decode(sample.codes[: model.layout.num_streams], voice)
            writer.add_audio(f"speech/{sample.key}/copy", true, step, sample_rate=rate)
        model.train(was_training)
