"""The generation benchmark at its toy shape: both sides give the same codes, and the figures fit together."""

import argparse
import json

import pytest

from slmkit.bench import decode


def test_both_sides_give_equal_answers(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    assert (
        decode.run(parser.parse_args(["--quick", "--batch", "1", "3", "--steps", "6", "--repeats", "1", "--json"])) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert [(case["group"], case["batch"]) for case in result["cases"]] == [
        (g, b) for g in decode.GROUPS for b in (1, 3)
    ]
    for case in result["cases"]:
        assert case["equal_answers"] == case["batch"]
        assert case["steps"] == 7 * case["batch"]  # `<sosp>`, then speech alone
        assert case["frames"] == 6 * case["batch"] * max(1, case["group"]) // 3
        assert case["ratio"] == pytest.approx(case["frames_per_sec"] / case["plain_frames_per_sec"])
    assert "MTP-12" in decode.describe(result)
