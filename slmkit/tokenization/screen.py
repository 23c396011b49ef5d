"""The columns by which utterances are filtered: those that the source brings, and those that slmkit measures.

`dnsmos` (see audio/dnsmos.py) and `speech_share` (audio/speech_share.py) are numbers of an utterance. What the source
says goes first, and is judged before anything is decoded. What it does not say can be measured, in the processes that
decode: of the recording itself, mono at its own rate, so that the same utterances are kept whatever the codec. Nothing
that is refused reaches the codec. A value is rounded before it is judged, and kept as a column of the sample.

An utterance that cannot be measured (it is too short) has no value. It is refused where a least value is wanted.

torch is not imported here, and the networks are loaded when the first utterance is measured.

Invariant: a value depends on the recording and the networks alone; which networks they are is part of the job.

Example:
    screen = Screen.of(config)                  # measure=[dnsmos], filters.min_dnsmos=3.5
    screen.refusal_by_source(utterance)         # None where it is to be measured
    screen.screened(utterance, mono, 24000)     # the utterance with its `dnsmos`, or a Failure "low_dnsmos"
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slmkit.audio.dnsmos import Dnsmos
from slmkit.audio.packaged import packaged_path
from slmkit.audio.speech_share import SpeechDetector
from slmkit.config.tokenize import TokenizeConfig
from slmkit.corpora.base import QUALITIES, Utterance
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample
from slmkit.files import sha256_file

LOW, NONE = "low_{}", "no_{}"  # reasons of the ledger, with the name of the column
SCREENED = frozenset(reason.format(name) for reason in (LOW, NONE) for name in QUALITIES)
OF_SOURCE = "source_{}"  # the column that keeps what the source says where it is measured again
DIGITS = 4  # after the point
Measure = type[SpeechDetector] | type[Dnsmos]
# The quickest first: what it refuses is not measured further.
MEASURES: dict[str, Measure] = {"speech_share": SpeechDetector, "dnsmos": Dnsmos}


@functools.cache
def _loaded(load: Callable[[], SpeechDetector | Dnsmos]) -> SpeechDetector | Dnsmos:
    """Once for each process."""
    return load()


@dataclass(frozen=True, kw_only=True)
class Screen:
    """What is measured, and the least value that is wanted of each column."""

    measures: Mapping[str, Measure] = field(default_factory=dict)
    again: bool = False  # measure also what the source says
    least: Mapping[str, float] = field(default_factory=dict)

    @staticmethod
    def of(config: TokenizeConfig) -> "Screen":
        """What a job is told."""
        wanted = {"dnsmos": config.filters.min_dnsmos, "speech_share": config.filters.min_speech_share}
        return Screen(
            measures={name: measure for name, measure in MEASURES.items() if name in config.measure},
            again=config.remeasure,
            least={name: least for name, least in wanted.items() if least is not None},
        )

    def refusal_by_source(self, utterance: Utterance) -> Failure | None:
        """Why this utterance is left out, by the columns of its source alone; None where it is not, or not yet."""
        for name, least in self.least.items():
            value = utterance.extra.get(name)
            value = value if isinstance(value, int | float) else None
            if name in self.measures and (self.again or value is None):
                continue
            if value is None:
                what = f"the source gives no {name}; measure=[{name}] measures it"
                return Failure(utterance.key, NONE.format(name), what)
            if not value >= least:
                return _too_low(utterance.key, name, f"{value} by the source", least)
        return None

    def screened(self, utterance: Utterance, mono: np.ndarray, sample_rate: int) -> Utterance | Failure:
        """The utterance with the columns that are measured, or why it is left out.

        `mono`, float32 [samples] at `sample_rate` Hz, is the recording, or the cut of it that the utterance is.
        """
        for name, measure in self.measures.items():
            said = utterance.extra.get(name)
            if isinstance(said, int | float) and not self.again:
                continue
            value, why = _measured(measure, mono, sample_rate)
            extra: dict[str, Any] = {column: v for column, v in utterance.extra.items() if column != name}
            if said is not None:
                extra[OF_SOURCE.format(name)] = said
            if value is not None:
                extra[name] = value
            utterance = utterance._replace(extra=extra)
            least = self.least.get(name)
            if least is not None and value is None:
                return Failure(utterance.key, NONE.format(name), why)
            if least is not None and value is not None and value < least:
                return _too_low(utterance.key, name, f"{value} as measured", least)
        return utterance

    def networks(self) -> dict[str, str]:
        """The sha256 of each network by which is measured.

        Raises UserError when one is not installed: it names what to install.
        """
        return {
            name: sha256_file(packaged_path(*measure.NETWORK, what=f"measure=[{name}]"))
            for name, measure in self.measures.items()
        }


def job_settings(config: TokenizeConfig) -> dict[str, Any]:
    """The options that decide the shards' bytes, with the networks by which is measured: plain values.

    Raises UserError when one of them is not installed.
    """
    screen = Screen.of(config)
    return config.settings() | ({"networks": screen.networks()} if screen.measures else {})


def _measured(measure: Measure, mono: np.ndarray, sample_rate: int) -> tuple[float | None, str]:
    """The value, rounded; or None and why there is none."""
    try:
        value = _loaded(measure.load).score(mono, sample_rate)
    except BadSample as error:
        return None, "; ".join(filter(None, (error.what, error.got and f"got {error.got}")))
    if not math.isfinite(value):
        return None, f"the measured value is {value}"
    return round(float(value), DIGITS) + 0.0, ""  # no minus zero


def _too_low(key: str, name: str, found: str, least: float) -> Failure:
    return Failure(key, LOW.format(name), f"{name} is {found}, at least {least} is wanted")
