"""The data benchmark at its toy sizes: it measures what it claims to measure."""

import argparse
import json

import numpy as np
import pytest

from slmkit.bench import data


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    data.add_arguments(parser)
    return parser.parse_args(words)


def test_figures_of_every_part(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "alone", lambda work, *given: work(*given))  # starting processes takes longer than this
    assert data.run(arguments("--quick", "--json", "--resume-samples", "40000")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["resume_samples"], result["plan_samples"]) == (40_000, 100_000)
    assert 0 < result["resume_sec"] < 10
    assert 100_000 / 5 < result["plan_rows"] < 100_000 / 2
    assert 0 < result["plan_peak_gib"] < 4
    assert result["loader_ratio"] == pytest.approx(result["loader_rows_per_sec"] / result["training_rows_per_sec"])
    assert data.describe(result).count("required") == 3


@pytest.mark.full
def test_a_part_runs_in_a_process_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert data.run(arguments("--part", "plan", "--plan-samples", "20000")) == 0
    assert capsys.readouterr().out.startswith("plan, 20,000 utterances: ")


def test_lengths_are_those_stated() -> None:
    records = data.simulated(0, 50_000)
    seconds = records["frames"] / 80
    assert np.median(seconds) == pytest.approx(5.5, rel=0.02)
    assert seconds.max() == 20.0
    assert (records["text_positions"] - 25 == np.round(15 * seconds)).mean() > 0.9
    assert not np.array_equal(records, data.simulated(50_000, 50_000))
