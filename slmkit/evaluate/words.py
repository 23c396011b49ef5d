"""Word and character error rates of text that was recognised. The only file that knows jiwer.

Both texts go through `normalized` first: Whisper's English normaliser (arXiv 2212.04356, appendix C), as transformers
ships it. It lower-cases, drops punctuation, fillers and what stands in brackets, writes contractions out and numbers in
digits. Its last part, British to American spelling, is a table that is not in transformers but in the directory of
every published Whisper model (`normalizer.json`): take it from `Recognizer.spellings`. Without it "colour" against
"color" counts as an error, and nothing else changes.

A text is normalised in pieces of at most 4 000 characters: time grows with the square of the length, and numbers of
more digits than that fail.

Rates of a corpus are those of the summed counts, so that long sentences weigh more: `sum_of`, then `rate`.

Invariant: equal texts have no errors; the rate is (substitutions + deletions + insertions) / units of the reference.

Example:
    counts = [error_counts(normalized(text), normalized(heard)) for text, heard in pairs]
    sum_of(counts).rate         # the word error rate of all of them
"""

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Literal, NamedTuple

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from slmkit.extras import missing

PIECE_CHARS = 4000


class Errors(NamedTuple):
    """Counts of one pair of texts, or of many together."""

    substitutions: int
    deletions: int
    insertions: int
    reference: int  # words or characters of the reference

    @property
    def rate(self) -> float | None:
        """Errors per unit of the reference, above 1 where much was inserted; None where the reference is empty."""
        return (self.substitutions + self.deletions + self.insertions) / self.reference if self.reference else None


def normalized(text: str, spellings: Mapping[str, str] | None = None) -> str:
    """`text` as Whisper's authors compare it; `spellings` maps British words to American ones."""
    normalizer = _normalizer(tuple((spellings or {}).items()))
    return " ".join(filter(None, (normalizer(piece).strip() for piece in _pieces(text))))


def error_counts(reference: str, hypothesis: str, unit: Literal["word", "char"] = "word") -> Errors:
    """Errors of `hypothesis` against `reference`, both normalised by the caller; a space between words is a character.

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


def sum_of(errors: Iterable[Errors]) -> Errors:
    """Counts of many pairs together; all 0 for none."""
    return Errors(*(sum(column) for column in zip(Errors(0, 0, 0, 0), *errors, strict=True)))


def _pieces(text: str) -> Iterator[str]:
    """`text` in pieces of at most `PIECE_CHARS`, cut at a space where there is one."""
    while len(text) > PIECE_CHARS:
        cut = text.rfind(" ", 0, PIECE_CHARS) + 1 or PIECE_CHARS
        yield text[:cut]
        text = text[cut:]
    yield text


@lru_cache(maxsize=4)
def _normalizer(spellings: tuple[tuple[str, str], ...]) -> EnglishTextNormalizer:
    return EnglishTextNormalizer(dict(spellings))
