"""Speech samples for TensorBoard while a model is in training.

For each sentence: `speech/KEY/text`, what is said; `speech/KEY/generated` and `speech/KEY/reference` to listen to (the
reference is the codec's copy of the true speech, the best the model could do); and `speech/KEY/mel`, both log-mel
spectra below each other. A model that learns to answer questions is asked `speech/KEY/question`; `speech/KEY/words` is
what it writes.

Example:
    speak = SpeechSamples(codec="CODEC", tokenizer="BASE", source=open_source("SHARDS", "tts"))
    speak(model, SummaryWriter("RUN"), step=500)
"""

from pathlib import Path
from typing import Any

import torch

from slmkit import plot
from slmkit.audio.mel import HOP_SEC, log_mel
from slmkit.codec.open import open_codec
from slmkit.data.shards import Sample
from slmkit.data.sources import Source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.infer.synthesizer import Synthesizer
from slmkit.log import get_logger
from slmkit.model.slm import SpeechLM
from slmkit.texts import excerpt

SHOWN_ERROR = 200  # characters
MAX_SEC = 12.0  # of a sample; an untrained model would speak without end
log = get_logger(__name__)


class SpeechSamples:
    """Speaks the first sentences of a corpus, each in its own voice where one is taken, beside the codec's copy of the
    true speech."""

    def __init__(
        self, *, codec: str | Path, tokenizer: str | Path, source: Source, task: str = "tts", number: int = 2
    ) -> None:
        """`task` "qa" asks questions, any other reads. Raises UserError when a part is missing, or the codes are not of
        this codec."""
        self.codec, self.tokenizer = open_codec(codec), TextTokenizer.load(tokenizer)
        assert source.codec is not None, "a source with speech"
        source.codec.check_compatible(self.codec.spec, this=source.path, that=str(codec))
        self.samples = [source.reader.read(i) for i in range(min(number, len(source)))]
        if self.codec.spec.decodes_voice and not source.codec.speaker_dim:
            raise UserError("speech samples need speaker vectors, and the corpus has none", got=source.path)
        if source.codec.speaker_dim and not self.codec.spec.speaker_dim:
            raise UserError(
                "the corpus has speaker vectors, and the codec for speech samples gives none",
                got=codec,
                next_step="give the codec directory that the corpus was tokenized with",
            )
        self.is_asked = task == "qa"
        if self.is_asked and not all(isinstance(sample.meta.get("question"), str) for sample in self.samples):
            raise UserError("speech samples of the task qa need questions, and the corpus has none", got=source.path)

    def __call__(self, model: SpeechLM, writer: Any, step: int) -> None:
        """Add sound and pictures of `step` to TensorBoard's `writer`; the model goes on in the mode it was in.

        A model that gives no speech for a sentence has the reference alone; what is wrong with a sentence or with its
        sound, or that there is no memory for it, is logged, and ends no training.
        """
        was_training = model.training
        try:
            synthesizer = Synthesizer(model, self.tokenizer, self.codec)
            for sample in self.samples:
                try:
                    self._add(synthesizer, sample, writer, step)
                except (UserError, RuntimeError, ValueError, MemoryError) as error:
                    what = excerpt(getattr(error, "what", error), SHOWN_ERROR)
                    log.warning("%s is not in TensorBoard: %s", sample.key, what)
        finally:
            model.train(was_training)

    def _add(self, synthesizer: Synthesizer, sample: Sample, writer: Any, step: int) -> None:
        vector = synthesizer.no_voice if sample.speaker is None else sample.speaker
        rate, voice = self.codec.spec.sample_rate, torch.from_numpy(vector)
        ask, text = (synthesizer.answering, "question") if self.is_asked else (synthesizer.reading, "text")
        (output,) = synthesizer.engine.generate([ask(sample.meta[text], vector, max_sec=MAX_SEC, max_retries=0)])
        writer.add_text(f"speech/{sample.key}/{text}", sample.meta[text], step)
        if self.is_asked:
            writer.add_text(f"speech/{sample.key}/words", synthesizer.words_of(output).text, step)
        output.check_finite()
        waves = {"generated": synthesizer.decode(output.codes, voice)} if output.codes.shape[1] else {}
        waves["reference"] = synthesizer.decode(sample.codes[: synthesizer.model.layout.num_streams], voice)
        for name, wave in waves.items():
            writer.add_audio(f"speech/{sample.key}/{name}", wave, step, sample_rate=rate)
        picture = plot.spectra({name: log_mel(wave, rate) for name, wave in waves.items()}, sec_per_column=HOP_SEC)
        writer.add_image(f"speech/{sample.key}/mel", picture, step, dataformats="HWC")
