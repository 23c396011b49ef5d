"""How fast is spoken, and against the corpus: letters and digits a second, and seconds for the same sentence.

A reading that skips is too fast, one that drags or loops too slow; which of the two, error rates do not tell.

Invariant: copy synthesis is as fast as the corpus.
"""

from slmkit.evaluate.metrics import Metric, Scores, measures
from slmkit.evaluate.spoken import Spoken


@measures(
    Metric(
        name="speech_rate",
        label="speech rate",
        unit="chars/s",
        digits=1,
        order=25,
        note="Letters and digits of the sentence for each second of speech; no speech: left out.",
    ),
    Metric(
        name="relative_rate",
        label="rate / corpus",
        digits=2,
        order=26,
        note="Seconds of the corpus for a second of speech of the same sentences: 1 is as fast, 2 twice as fast.",
    ),
)
def speech_rate(spoken: Spoken) -> Scores:
    if spoken.record.question:  # what is said is the model's own
        return {}
    number, codec = spoken.record.number, spoken.truths.codec.spec
    true_sec = spoken.truths.codes(number).shape[1] * codec.hop_samples / codec.sample_rate
    chars = float(sum(map(str.isalnum, spoken.record.text)))
    if not spoken.record.frames:
        return {"speech_rate": None, "relative_rate": None, "speech_rate:corpus": (chars, true_sec)}
    return {
        "speech_rate": (chars, spoken.seconds),
        "relative_rate": (true_sec, spoken.seconds),
        "speech_rate:corpus": (chars, true_sec),
    }
