"""The utterances of an evaluation worth hearing: the worst of each metric, with copy, recording and a picture beside.

Example:
    heard = make_listening(directory, worst(rows), truths)
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from slmkit import plot
from slmkit.audio.io import write_wav
from slmkit.audio.mel import HOP_SEC, log_mel
from slmkit.evaluate.metrics import TIMED, in_order, metric
from slmkit.evaluate.outputs import read_wave, wav_path
from slmkit.evaluate.truth import Truths
from slmkit.files import atomic_write

LISTEN = "listen"
PER_METRIC = 3

Row = dict[str, Any]


class Heard(NamedTuple):
    """One utterance with its files, named relative to the report."""

    row: Row
    worst_by: tuple[str, ...]  # titles of metrics by which it is among the worst
    sounds: tuple[tuple[str, str], ...]  # label, file
    picture: str | None


def worst(rows: Sequence[Row], per_metric: int = PER_METRIC) -> list[tuple[Row, tuple[str, ...]]]:
    """The worst rows by each metric that has a better side, each once with the titles of those metrics.

    One that a metric could not be computed of is worst of all by it; none is where all are equally good. Those that are
    bad by many metrics come first. The first rows, without titles, where no metric tells rows apart.
    """
    titles: dict[int, list[str]] = {}
    by_place = {row["place"]: row for row in rows}
    for name in in_order({name for row in rows for name in row["scores"]}):
        judged = metric(name)
        if not judged.better or name in TIMED or ":" in name:
            continue
        sign = 1 if judged.better == "high" else -1
        values = {row["place"]: _value(row["scores"][name], sign) for row in rows if name in row["scores"]}
        top = max(values.values())
        ranked = sorted((value, place) for place, value in values.items() if value < top)
        for _, place in ranked[:per_metric]:
            titles.setdefault(place, []).append(judged.title)
    if not titles:
        return [(row, ()) for row in rows[:per_metric]]
    places = sorted(titles, key=lambda place: (-len(titles[place]), place))
    return [(by_place[place], tuple(titles[place])) for place in places]


def make_listening(directory: Path, chosen: Sequence[tuple[Row, tuple[str, ...]]], truths: Truths) -> list[Heard]:
    """Write what belongs to the chosen rows into `directory`, in place of what an earlier report left there."""
    shutil.rmtree(directory / LISTEN, ignore_errors=True)
    return [_heard(directory, row, worst_by, truths) for row, worst_by in chosen]


def _value(score: Sequence[float] | None, sign: int) -> float:
    """Smaller is worse."""
    if score is None:
        return float("-inf")
    amount, weight = score
    return sign * (amount / weight if weight else amount)


def _heard(directory: Path, row: Row, worst_by: tuple[str, ...], truths: Truths) -> Heard:
    place, number, rate = row["place"], row["number"], truths.codec.spec.sample_rate
    waves = {"copy": truths.copy(number)}
    source = truths.source(number)
    if source is not None:
        waves["recording"] = source
    sounds = []
    if row["frames"]:
        stored = wav_path(directory, place)
        sounds.append(("generated", stored.relative_to(directory).as_posix()))
        pictured = {"generated": read_wave(stored), **waves}
    else:
        pictured = dict(waves)
    for label, wave in waves.items():
        name = f"{LISTEN}/{place:05d}-{label}.wav"
        write_wav(directory / name, wave, rate, replace=True)
        sounds.append((label, name))
    levels = {label: log_mel(wave, rate) for label, wave in pictured.items() if len(wave)}
    picture = f"{LISTEN}/{place:05d}-mel.png" if levels else None
    if picture is not None:
        with atomic_write(directory / picture, replace=True) as file:
            file.write(plot.png(plot.spectra(levels, sec_per_column=HOP_SEC)))
    return Heard(row, worst_by, tuple(sounds), picture)
