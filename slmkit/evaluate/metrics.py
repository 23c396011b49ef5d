"""The metrics of an evaluation: their names, what is better, and how an utterance without speech counts.

It computes nothing; `scoring` does. A metric of each stream of the codec is named `frame_agreement:STREAM`.

Example:
    metric("wer").title, metric("wer").shown(0.125)      # "WER", "12.5"
"""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """One column of a table."""

    name: str
    title: str
    unit: str  # "%" for a share, which is shown as such
    better: Literal["high", "low", ""]  # "": neither
    digits: int
    note: str

    def shown(self, value: float) -> str:
        """A value as text, without its unit."""
        return f"{100 * value if self.unit == '%' else value:.{self.digits}f}"


METRICS = (
    Metric("success", "success", "%", "high", 1, "The model ended its speech itself; no speech at all is no success."),
    Metric(
        "wer",
        "WER",
        "%",
        "low",
        1,
        "Errors per word of what a recogniser heard, against the sentence or the model's own text answer. No speech: "
        "every word is lost.",
    ),
    Metric("cer", "CER", "%", "low", 1, "The same of characters."),
    Metric("exact_match", "EM", "%", "high", 1, "The text answer is one of the true ones, TriviaQA normalisation."),
    Metric("f1", "F1", "%", "high", 1, "Words that the text answer shares with the nearest true one."),
    Metric("speech_exact_match", "EM speech", "%", "high", 1, "EM of what a recogniser heard; no speech: 0."),
    Metric("speech_f1", "F1 speech", "%", "high", 1, "F1 of what a recogniser heard; no speech: 0."),
    Metric(
        "codec_similarity",
        "SIM codec",
        "",
        "high",
        3,
        "Cosine of the codec's speaker vectors of the speech and of the voice that was asked for; no speech: left out.",
    ),
    Metric(
        "other_voice_similarity",
        "SIM other",
        "",
        "low",
        3,
        "The same to the voice in which the corpus says the sentence, where another was asked for.",
    ),
    Metric(
        "wavlm_similarity",
        "SIM WavLM",
        "",
        "high",
        3,
        "Cosine of WavLM speaker vectors of the speech and of a recording of the voice; no speech: left out.",
    ),
    Metric("utmos", "UTMOS", "", "high", 2, "Predicted naturalness, 1 to 5; no speech: left out."),
    Metric(
        "log_mel_distance_db",
        "mel distance",
        "dB",
        "low",
        2,
        "To the codec's decoding of the true codes, in the corpus's own voice; no speech counts as silence.",
    ),
    Metric("source_distance_db", "mel to source", "dB", "low", 2, "Of copy synthesis: to the recording."),
    Metric("stoi", "STOI", "", "high", 3, "Of copy synthesis: intelligibility against the recording."),
    Metric("pesq", "PESQ", "", "high", 2, "Of copy synthesis: quality against the recording."),
    Metric(
        "frame_agreement",
        "frames equal",
        "%",
        "high",
        1,
        "Frames with the true codes, over all streams; frames that only one of the two has count as unequal.",
    ),
    Metric(
        "alignment_cosine",
        "align cosine",
        "",
        "high",
        3,
        "Of the mean hidden states of a sentence and of its true speech, behind the last layer.",
    ),
    Metric("alignment_euclidean", "align Euclid", "", "low", 2, "Distance of the same two means."),
    Metric("alignment_riemannian", "align Riemann", "", "low", 2, "Distance of how the states spread around them."),
    Metric("steps_per_sec", "steps/s", "", "high", 0, "Positions decoded in a second, all slots together."),
    Metric("frames_per_step", "frames/step", "", "", 2, "Codec frames per position decoded, text included."),
    Metric("real_time_factor", "RTF", "", "low", 3, "Seconds of decoding for a second of speech, without the codec."),
)
# Utterances that are decoded together share the time: only the sum over all means something, and it has no interval.
TIMED = ("steps_per_sec", "real_time_factor")
_BY_NAME = {metric.name: (place, metric) for place, metric in enumerate(METRICS)}


def metric(name: str) -> Metric:
    """The metric of that name. Raises KeyError when there is none."""
    base, _, stream = name.partition(":")
    found = _BY_NAME[base][1]
    return found._replace(name=name, title=f"{found.title}, {stream}") if stream else found


def in_order(names: set[str]) -> list[str]:
    """Names of metrics as the tables show them."""
    return sorted(names, key=lambda name: (_BY_NAME[name.partition(":")[0]][0], name))
