"""The metrics of an evaluation: a registry, with one file per family of metrics in this package.

A metric says how it is named and shown; a family of metrics is measured together, of one utterance at a time. Every
file of this package is found by itself; a file elsewhere registers its metrics when it is imported. Reports carry the
description of each metric that they hold, so that comparing them needs none of these files.

A score is an amount and a weight: (1, 1) for an utterance that ended by itself, (3, 12) for three errors in twelve
words. It is None where the metric cannot be computed, which is counted and shown, never hidden. An utterance without
speech is a failure in every metric that can say so: no success, every word lost, no frame equal, silence in place of
sound. Only of its voice and quality nothing can be said.

Invariant: the scores of an utterance depend on its output, the corpus and the tools alone.

Example, a file of its own:
    @measures(Metric(name="peak", label="peak", note="Largest sample.", order=200, better="lower", digits=2))
    def peak(spoken: Spoken) -> Scores:
        return {"peak": single(np.abs(spoken.wave).max()) if spoken.record.frames else None}
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from annotated_types import Ge, Le
from pydantic import ConfigDict

from slmkit.errors import UserError

if TYPE_CHECKING:
    from slmkit.evaluate.spoken import Spoken

Score = tuple[float, float]  # amount, weight
Scores = dict[str, Score | None]
Measure = Callable[["Spoken"], Scores]
Need = Literal[
    "recognizer", "wavlm", "utmos", "distillmos", "dnsmos", "copy_quality", "model"
]  # the fields of `spoken.Tools`


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How a metric is named and shown."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(strict=True, extra="forbid")  # of those in reports

    name: str  # in report.json
    label: str  # in tables
    note: str  # a sentence or two on what it says, for the page
    order: int  # its place among the others
    unit: str = ""  # "%" for a share, which is shown as such
    better: Literal["higher", "lower", ""] = ""  # "": neither
    digits: Annotated[int, Ge(0), Le(9)] = 3  # behind the point
    # Utterances that are decoded together share the time: only the sum over all means something, without an interval.
    is_timed: bool = False
    is_detail: bool = False  # in the table of a report alone: no histogram, no examples, not compared

    @property
    def title(self) -> str:
        """Label and unit."""
        return f"{self.label} {self.unit}".strip()

    def shown(self, value: float, *, signed: bool = False) -> str:
        """A value as text, without its unit; `signed` with a plus sign where it is positive."""
        return f"{100 * value if self.unit == '%' else value:{'+' if signed else ''}.{self.digits}f}"


class Family(NamedTuple):
    """Metrics that are measured together. `measure` gives scores under their names, and under names with a part of its
    own behind a colon ("frame_agreement:prosody"), which are shown as details; none where they do not apply."""

    metrics: tuple[Metric, ...]
    needs: tuple[Need, ...]
    measure: Measure


REGISTRY: dict[str, Family] = {}  # by the name of the first metric


def measures(*metrics: Metric, needs: Iterable[Need] = ()) -> Callable[[Measure], Measure]:
    """Register what the decorated function measures; it is called only where every one of `needs` is given.

    Raises ValueError when a name is taken by another family.
    """

    taken = {metric.name for family in REGISTRY.values() for metric in family.metrics}
    if clash := taken & {metric.name for metric in metrics}:
        raise ValueError(f"the metric {clash.pop()} is registered already")

    def register(measure: Measure) -> Measure:
        REGISTRY[metrics[0].name] = Family(metrics, tuple(needs), measure)
        return measure

    return register


def families() -> list[Family]:
    """All that are registered, in the order of their first metrics."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return sorted(REGISTRY.values(), key=lambda family: family.metrics[0].order)


def single(value: float | None) -> Score | None:
    """A value as a score of weight 1; None where it is not a finite number."""
    return None if value is None or not math.isfinite(value) else (float(value), 1.0)


def missing(what: str, package: str, error: ImportError) -> UserError:
    """For scores (`what`, in words) that need a package of the extra `eval` which cannot be imported."""
    return UserError(f"{what} need the package {package}", got=error, next_step='pip install "slmkit[eval]"')
