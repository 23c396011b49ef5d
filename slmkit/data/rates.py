"""How many frames of speech a corpus has for a token of text.

Of every example that is spoken (tasks tts and qa) the tokens of its text are known from the table of lengths: positions
of the whole example, less those that an example without text has. So nothing is read for it.

Example:
    rates = speech_rates([(table["frames"], num_tokens, languages)])
    rates.widest.highest * num_tokens  # frames that one text of a thousand passes
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slmkit.data import prompt, sequence
from slmkit.data.vocab import VocabLayout

QUANTILES = {"lowest": 0.001, "median": 0.5, "high": 0.99, "highest": 0.999}


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


def num_text_tokens(text: str, encode: Callable[[str], list[int]], layout: VocabLayout) -> int:
    """Tokens of a text that is to be read aloud, as `speech_rates` counts them."""
    with_text, without = (
        sequence.text_size(sequence.tokenize(prompt.tts(some), encode, layout))[0] for some in (text, "")
    )
    return max(0, with_text - without)
