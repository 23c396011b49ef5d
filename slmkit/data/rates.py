"""How many frames of speech a corpus has for a token of text.

Of every example that is spoken (tasks tts and qa) the tokens of its text are known from the table of lengths: those of
the whole example, less those that an example without text has. So no sample is read, but one of each language for its
name.

Example:
    rates = speech_rates(data.parts)
    rates.widest.highest * num_tokens  # frames that one text of a thousand passes
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from slmkit.data import prompt, sequence
from slmkit.data.examples import Part
from slmkit.data.lengths import UNREADABLE
from slmkit.data.vocab import VocabLayout
from slmkit.errors import DamagedSample

QUANTILES = {"lowest": 0.001, "median": 0.5, "high": 0.99, "highest": 0.999}
MOST_SAMPLES = 1_000_000  # of a source, evenly spread, that are looked at
MOST_LANGUAGES = 256  # of a source that are told apart


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Quantiles of frames per text token, above 0, as `QUANTILES` says."""

    lowest: float
    median: float
    high: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class SpeechRates:
    """The quantiles of a corpus, and of each of its languages."""

    all: Rate
    languages: Mapping[str, Rate]

    @property
    def widest(self) -> Rate:
        """What holds for every language: the lowest and the highest of all, with the median of the corpus."""
        every = [self.all, *self.languages.values()]
        return Rate(
            lowest=min(rate.lowest for rate in every),
            median=self.all.median,
            high=max(rate.high for rate in every),
            highest=max(rate.highest for rate in every),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"all": asdict(self.all), "languages": {name: asdict(rate) for name, rate in self.languages.items()}}

    @staticmethod
    def from_dict(values: Any) -> "SpeechRates":
        """Inverse of `to_dict`. Raises ValueError, TypeError or KeyError where it cannot be."""
        return SpeechRates(
            all=_rate(values["all"]), languages={str(name): _rate(v) for name, v in values["languages"].items()}
        )


def _rate(values: Mapping[str, Any]) -> Rate:
    rate = Rate(**{name: float(value) for name, value in values.items()})
    if not 0 < rate.lowest <= rate.median <= rate.high <= rate.highest < float("inf"):
        raise ValueError(f"{rate} are no quantiles")
    return rate


def speech_rates(parts: Sequence[Part]) -> SpeechRates | None:
    """Of the examples of some sources; None where none of them is spoken."""
    by_language: dict[str, list[npt.NDArray[np.float64]]] = {}
    for part in parts:
        if part.source.codec is None or part.wording.task not in ("tts", "qa") or not part.count:
            continue
        numbers = part.numbers(np.arange(0, part.count, -(-part.count // MOST_SAMPLES)))
        rows = part.table[numbers]
        tokens = _text_tokens(part, rows)
        is_spoken = (rows["text_positions"] != UNREADABLE) & (rows["frames"] > 0) & (tokens > 0)
        numbers, rows = numbers[is_spoken], rows[is_spoken]
        rates = rows["frames"] / tokens[is_spoken]
        hashes, firsts = np.unique(rows["language_hash"], return_index=True)
        for language, first in zip(hashes[:MOST_LANGUAGES], firsts, strict=False):
            name = _language(part, int(numbers[first]))
            by_language.setdefault(name, []).append(rates[rows["language_hash"] == language])
        by_language.setdefault("", []).append(rates[~np.isin(rows["language_hash"], hashes[:MOST_LANGUAGES])])
    every = [rates for some in by_language.values() for rates in some]
    if not sum(map(len, every)):
        return None
    named = {name: np.concatenate(some) for name, some in sorted(by_language.items()) if name}
    return SpeechRates(
        all=_quantiles(np.concatenate(every)), languages={name: _quantiles(some) for name, some in named.items()}
    )


def _language(part: Part, number: int) -> str:
    try:
        return str(part.source.reader.read_meta(number).get("language", ""))
    except DamagedSample:  # since the table was made; training says what becomes of it
        return ""


def _quantiles(rates: npt.NDArray[np.float64]) -> Rate:
    found = np.maximum.accumulate(np.quantile(rates, [*QUANTILES.values()]))  # rounding must not change their order
    return Rate(**dict(zip(QUANTILES, map(float, found), strict=True)))


def _text_tokens(part: Part, rows: npt.NDArray[np.void]) -> npt.NDArray[np.int64]:
    """Text tokens of examples that are spoken: of a question it is the answer's, which alone is learnt."""
    speaker, task = part.wording.speaker, part.wording.task
    wordless = prompt.tts("", speaker=speaker) if task == "tts" else prompt.qa("", "", speaker=speaker)
    pieces = sequence.tokenize(wordless, part.wording.tokenizer.encode, part.wording.layout)
    num_positions, num_targets = sequence.text_size(pieces)
    if task == "tts":
        return rows["text_positions"].astype(np.int64) - num_positions
    return rows["text_targets"].astype(np.int64) - num_targets


def num_text_tokens(text: str, encode: Callable[[str], list[int]], layout: VocabLayout) -> int:
    """Tokens of a text that is to be read aloud, as `speech_rates` counts them."""
    with_text, without = (
        sequence.text_size(sequence.tokenize(prompt.tts(some), encode, layout))[0] for some in (text, "")
    )
    return max(0, with_text - without)
