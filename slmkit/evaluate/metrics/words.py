"""Word and character error rates of what a recognizer heard. The only file that knows jiwer.

Both texts go through `normalized` first: Whisper's English normalizer (arXiv 2212.04356, appendix C), as transformers
ships it. It lower-cases, drops punctuation, fillers and what stands in brackets, writes contractions out and numbers in
digits. Its last part, British to American spelling, is a table that is not in transformers but in the directory of
every published Whisper model (`normalizer.json`): take it from `Recognizer.spellings`. Without it "colour" against
"color" counts as an error, and nothing else changes.

A text is normalized in pieces of at most 4 000 characters: time grows with the square of the length, and numbers of
more digits than that fail.

Invariant: equal texts have no errors; the rate is (substitutions + deletions + insertions) / units of the reference.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from slmkit.evaluate.metrics import Metric, Scores, measures, missing
from slmkit.evaluate.spoken import Spoken

PIECE_CHARS = 4000


class Errors(NamedTuple):
    """Counts of a pair of texts."""

    substitutions: int
    deletions: int
    insertions: int
    reference: int  # words or characters of the reference


@measures(
    Metric(
        name="wer",
        label="WER",
        unit="%",
        better="lower",
        digits=1,
        order=20,
        note="Word error rate of what the recognizer heard, against the sentence or the model's own text answer. No "
        "speech: every word is lost.",
    ),
    Metric(
        name="cer",
        label="CER",
        unit="%",
        better="lower",
        digits=1,
        order=21,
        note="Character error rate of the same.",
    ),
    needs=["recognizer"],
)
def word_errors(spoken: Spoken) -> Scores:
    record, recognizer = spoken.record, spoken.tools.recognizer
    assert recognizer is not None, "the registry asks for it"
    said = record.text
    if record.question:  # the true answer where the model wrote none
        said = record.answer or next(iter(record.true_answers), "")
    pair = normalized(said, recognizer.spellings), normalized(spoken.heard, recognizer.spellings)
    words, chars = error_counts(*pair, "word"), error_counts(*pair, "char")
    kinds = {f"wer:{kind}": (getattr(words, kind), words.reference) for kind in Errors._fields[:3]}
    return {"wer": (sum(words[:3]), words.reference), "cer": (sum(chars[:3]), chars.reference), **kinds}


def normalized(text: str, spellings: Mapping[str, str] | None = None) -> str:
    """`text` as Whisper's authors compare it; `spellings` maps British words to American ones."""
    normalizer = _normalizer(tuple((spellings or {}).items()))
    found = []
    while text:
        cut = len(text)
        if cut > PIECE_CHARS:  # at a space where there is one
            cut = text.rfind(" ", 0, PIECE_CHARS) + 1 or PIECE_CHARS
        found.append(normalizer(text[:cut]).strip())
        text = text[cut:]
    return " ".join(filter(None, found))


@lru_cache(maxsize=4)
def _normalizer(spellings: tuple[tuple[str, str], ...]) -> EnglishTextNormalizer:
    return EnglishTextNormalizer(dict(spellings))


def error_counts(reference: str, hypothesis: str, unit: Literal["word", "char"] = "word") -> Errors:
    """Errors of `hypothesis` against `reference`, both normalized by the caller; a space between words is a character.

    Raises UserError when jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise missing("word error rates", "jiwer", error) from error
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    found = process(reference, hypothesis)
    num_units = found.hits + found.substitutions + found.deletions
    return Errors(found.substitutions, found.deletions, found.insertions, num_units)
