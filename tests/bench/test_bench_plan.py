"""The planning benchmark at its toy sizes: it measures what it claims to measure."""

import argparse
import json

import pytest

from slmkit.bench import plan


def arguments(*words):
    parser = argparse.ArgumentParser()
    plan.add_arguments(parser)
    return parser.parse_args(words)


def test_figures_of_both_parts(capsys, monkeypatch):
    monkeypatch.setattr(plan, "alone", lambda work, *given: work(*given))  # starting processes takes longer than this
    assert plan.run(arguments("--quick", "--json", "--items", "3000")) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["plan_items"], result["finalize_shards"]) == (3000, 20)
    # refused: DNSMOS 3.0 of every 11th, 0.3 and 0.4 s of every 97th; those of both only once
    refused = sum(i % 11 == 0 or i % 97 < 2 for i in range(3000))
    assert result["plan_kept"] == 3000 - refused
    assert 0 < result["plan_sec"] < 60
    assert 0 < result["finalize_sec"] < 60
    assert plan.describe(result).count("required") == 2


@pytest.mark.full
def test_a_part_runs_in_a_process_of_its_own(capsys):
    assert plan.run(arguments("--part", "finalize", "--shards", "2")) == 0
    assert capsys.readouterr().out.startswith("finalize, 2 shards: ")
