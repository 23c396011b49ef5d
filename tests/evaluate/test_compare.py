"""Evaluations side by side: what is best, what differs and how surely, over which utterances."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from slmkit.errors import UserError
from slmkit.evaluate.compare import best, compare_directories, compare_reports, page, text_table
from slmkit.evaluate.metrics import Metric
from slmkit.evaluate.results import SEVERAL_MACHINES, bootstrap, difference
from slmkit.files import write_json

SUCCESS = Metric(name="success", label="success", unit="%", better="higher", digits=1, order=1, note="")
WER = Metric(name="wer", label="WER", unit="%", better="lower", digits=1, order=2, note="")
NAME = "</bdi><script>document.title='owned'</script>"


def report(errors: dict[str, int | None], *, text: str = "say", asr: str = "w", **changes: Any) -> dict[str, Any]:
    """Of utterances of ten words each with so many errors; None where nothing was measured."""
    rows = [
        {
            "key": key,
            "voice": "own",
            "voice_key": key,
            "text": f"{text} {key}",
            "question": "",
            "scores": {"wer": None if count is None else [count, 10], "success": [1, 1]},
        }
        for key, count in errors.items()
    ]
    settings = {"task": "tts", "codec": {"name": "melvq", "weights_sha256": "1"}, **changes}
    empty = {"names": {}, "outputs_sha256": "", "measured_with": {"asr": asr}, "summary": {}}
    return {**empty, "settings": settings, "metrics": [asdict(SUCCESS), asdict(WER)], "utterances": rows}


def test_the_best_is_marked_and_differences_are_of_pairs() -> None:
    first, second = {"a": 4, "b": 2, "c": 6}, {"c": 5, "a": 3, "b": 1}
    found = compare_reports({"ntp": report(first), "mtp": report(second)})
    assert found["utterances"] == 3
    assert found["models"]["ntp"]["wer"]["mean"] == 12 / 30
    assert found["models"]["mtp"]["wer"]["mean"] == 9 / 30
    expected = bootstrap([(3, 10), (1, 10), (5, 10)])
    assert expected is not None
    assert {name: found["models"]["mtp"]["wer"][name] for name in ("mean", "low", "high")} == expected._asdict()
    assert best(WER, found["models"]) == {"mtp"}
    assert best(SUCCESS, found["models"]) == set()  # all are equal
    # Each sentence has one error less, so there is no doubt of the difference, wide as the intervals of the means are.
    wer = found["differences"]["mtp"]["wer"]
    assert found["differences_to"] == "ntp"
    assert [round(wer[name], 9) for name in ("mean", "low", "high")] == [-0.1, -0.1, -0.1]
    assert wer["pairs"] == 3
    assert [line.split() for line in text_table(found)] == [
        ["ntp", "mtp"],
        ["success", "%", "100.0", "100.0"],
        ["WER", "%", "40.0", "30.0*"],
    ]
    html = page(found)
    assert '<td class="best">30.0 <small>10.0 to 50.0</small></td>' in html
    assert "<strong>-10.0</strong> <small>-10.0 to -10.0</small>" in html
    assert "<td>+0.0 <small>+0.0 to +0.0</small></td>" in html


RTF = Metric(name="rtf", label="RTF", better="lower", digits=2, order=3, note="", is_timed=True)
ENGINE = {"device": "cpu", "threads": 1, "slots": 2}


def timed(seconds: float, *, cpu: str | None = "one", **changes: Any) -> dict[str, Any]:
    """A report with the time that one utterance took, on a machine."""
    found = report({"x": 1}, **{**ENGINE, **changes})
    found["utterances"][0]["scores"]["rtf"] = [seconds, 1]
    machine = {} if cpu is None else {"machine": {"cpu": cpu}}
    return {**found, "metrics": [*found["metrics"], asdict(RTF)], **machine}


@pytest.mark.parametrize(
    "other",
    [{"cpu": "another"}, {"cpu": None}, {"cpu": SEVERAL_MACHINES}, {"slots": 1}, {"threads": 2}, {"device": "cuda"}],
)
def test_speeds_are_compared_only_where_they_mean_the_same(other: dict[str, Any]) -> None:
    same = compare_reports({"a": timed(2.0), "b": timed(1.0)})
    assert best(RTF, same["models"]) == {"b"}
    assert text_table(same)[-1].split() == ["RTF", "2.00", "1.00*"]
    cpu = {"cpu": other["cpu"]} if other.get("cpu") == SEVERAL_MACHINES else {}  # which are no one machine twice either
    found = compare_reports({"a": timed(2.0, **cpu), "b": timed(1.0, **other)})
    assert not any("rtf" in means for means in found["models"].values())
    assert text_table(found)[-1].startswith("Speeds are not compared: machine, device, threads or slots differ")
    assert "RTF" not in page(found)
    copies = compare_reports({"a": timed(2.0), "b": report({"x": 1}, model="copy synthesis")})
    assert copies["models"]["a"]["rtf"]["mean"] == 2.0  # copies have no speed that could differ


def test_the_best_is_one_that_speaks() -> None:
    """The model with the fewest errors fails at three sentences of four; copies of the true codes have none at all."""
    errors = {"a": 3, "b": 3, "c": 3, "d": 3}
    silent = report(dict.fromkeys(errors, 1))
    for row in silent["utterances"][:3]:
        row["scores"]["success"] = [0, 1]
    reports = {"silent": silent, "good": report(errors), "bad": report(dict.fromkeys(errors, 5))}
    reports["copies"] = report(dict.fromkeys(errors, 0), model="copy synthesis")
    found = compare_reports(reports)
    assert found["copies"] == ["copies"]
    wer = next(line.split() for line in text_table(found) if line.startswith("WER"))
    assert wer[-4:] == ["10.0", "30.0*", "50.0", "0.0"]
    assert "Never the best, because they fail at most sentences: silent." in text_table(found)
    silent["utterances"][0]["scores"]["success"] = [1, 1]  # now half of them
    assert best(WER, compare_reports(reports)["models"], ["copies"]) == {"silent"}


def test_the_same_sentence_is_heard_by_all_models(tmp_path: Path) -> None:
    """Sounds are copied beside the page; what was trained on is marked, and no speech said."""
    for name, count in (("one", 30), ("two", 20)):
        found = report({f"k{i:02d}": 1 for i in range(count)})
        for place, row in enumerate(found["utterances"]):
            row |= {"place": place, "frames": int(name == "one" or place > 0), "heard": f"{name} heard {place}"}
            row["trained_on"] = name == "two"
        write_json(tmp_path / name / "report.json", found)
        (tmp_path / name / "wav").mkdir()
        for place in range(count):
            (tmp_path / name / "wav" / f"{place:05d}.wav").write_bytes(f"{name} {place}".encode())
    compare_directories([tmp_path / "one", tmp_path / "two"], tmp_path / "table", common=True)
    html = (tmp_path / "table" / "report.html").read_text()
    assert html.count("<article") == 12
    assert html.count("<audio") == 23
    assert html.count("no speech") == 1
    assert html.count("<b>trained on</b>") == 12
    assert "Of the 20 utterances some were trained on: 20 by two." in html
    last = html[html.rindex("<article") :]
    assert "one heard 18" in last
    assert "two heard 18" in last
    assert (tmp_path / "table" / "listen" / "11-0.wav").read_text() == "one 18"
    assert (tmp_path / "table" / "listen" / "11-1.wav").read_text() == "two 18"


def test_a_score_that_one_model_lacks_makes_no_pair() -> None:
    found = compare_reports({"a": report({"x": 4, "y": 2}), "b": report({"x": None, "y": 3})})
    assert found["models"]["b"]["wer"] | {"low": 0, "high": 0} == {
        "mean": 0.3,
        "low": 0,
        "high": 0,
        "counted": 1,
        "left_out": 1,
    }
    pairs = difference([(2, 10)], [(3, 10)])
    assert pairs is not None
    assert found["differences"]["b"]["wer"] == {**pairs._asdict(), "pairs": 1}
    nothing = compare_reports({"a": report({"x": None}), "b": report({"x": 3})})
    assert nothing["differences"]["b"].keys() == {"success"}
    assert text_table(nothing)[2].split() == ["WER", "%", "n/a", "30.0"]
    assert best(WER, nothing["models"]) == set()


def test_other_utterances_are_refused_or_left_out_and_counted() -> None:
    reports = {"a": report({"x": 1, "y": 1}), "b": report({"y": 2, "z": 2})}
    with pytest.raises(UserError, match="not of the same utterances"):
        compare_reports(reports)
    found = compare_reports(reports, common=True)
    assert (found["utterances"], found["left_out"]) == (1, {"a": 1, "b": 1})
    assert "<bdi>left out of a</bdi>" in page(found)
    with pytest.raises(UserError, match="no utterance in common"):
        compare_reports({"a": report({"x": 1}), "b": report({"z": 2})}, common=True)


def test_a_sentence_in_another_voice_is_another_utterance() -> None:
    reports = {"a": report({"x": 1, "y": 1}), "b": report({"x": 1, "y": 1})}
    reports["b"]["utterances"][0]["voice_key"] = "y"
    with pytest.raises(UserError, match="1 in common"):
        compare_reports(reports)


def test_what_cannot_be_compared_is_named() -> None:
    with pytest.raises(UserError, match="the evaluations are not of one task"):
        compare_reports({"a": report({"x": 1}), "b": report({"x": 1}, task="qa")})
    with pytest.raises(UserError, match="the evaluations have different texts for 'x'"):
        compare_reports({"a": report({"x": 1}), "b": report({"x": 1}, text="sing")})


def test_models_of_two_codecs_and_recognizers_are_compared_and_that_is_told() -> None:
    other = report({"x": 1}, asr="v", codec={"name": "facodec", "weights_sha256": "2"})
    found = compare_reports({"a": report({"x": 1}), "b": other})
    assert found["codecs"] == {"a": "melvq 1", "b": "facodec 2"}
    assert text_table(found)[-2:] == [
        "The models use different codecs: SIM codec, mel distance and frames equal are each relative to its own.",
        "Measured with different models for asr: v, w.",
    ]
    assert page(found).count('<p class="why">') == 2
    assert len(text_table(compare_reports({"a": other, "b": other}))) == 3


def test_many_models_are_printed_in_tables_of_80_columns() -> None:
    names = [f"runs/{'long' * 5}/model-{i}" for i in range(7)]
    printed = text_table(compare_reports({name: report({"x": i}) for i, name in enumerate(names)}))
    assert max(map(len, printed)) <= 80
    assert len(printed) == 9  # three blocks of a line of names and two metrics
    assert "…" in printed[0]
    assert printed[0].split()[0].endswith("/model-0")


def test_directories_are_read_and_named(tmp_path: Path) -> None:
    for name in ("one/scores", "two/scores", NAME.replace("/", "-")):
        write_json(tmp_path / name / "report.json", report({"x": 1}))
    hostile = tmp_path / NAME.replace("/", "-")
    found = compare_directories([tmp_path / "one/scores", hostile], tmp_path / "table")
    assert list(found["models"]) == ["scores", hostile.name]
    assert json.loads((tmp_path / "table" / "report.json").read_text()) == json.loads(json.dumps(found))
    assert "<script" not in (tmp_path / "table" / "report.html").read_text()
    same = [tmp_path / "one/scores", tmp_path / "two/scores"]
    assert list(compare_directories(same, tmp_path / "t2")["models"]) == [str(path) for path in same]
    with pytest.raises(UserError, match="already exists"):
        compare_directories(same, tmp_path / "t2")
    with pytest.raises(UserError, match="an evaluation is given twice"):
        compare_directories([same[0], same[0]], tmp_path / "t3")
    with pytest.raises(UserError, match="there is nothing to compare"):
        compare_directories(same[:1], tmp_path / "t3")
    with pytest.raises(UserError, match="holds no scores"):
        compare_directories([tmp_path, same[0]], tmp_path / "t3")
    damaged = [{"metrics": []}, {"utterances": [{**report({"x": 1})["utterances"][0], "place": None}]}]
    for number, change in enumerate(damaged):
        paths = [tmp_path / f"d{number}{which}" for which in "ab"]
        for path in paths:
            write_json(path / "report.json", {**report({"x": 1}), **change})
        with pytest.raises(UserError, match=r"have no score to compare|place: Input should be"):
            compare_directories(paths, tmp_path / "t3")
        assert not (tmp_path / "t3").exists()
    broken = report({"x": 1})
    del broken["settings"]["codec"]
    with pytest.raises(UserError, match="not that of an evaluation"):
        compare_reports({"a": broken, "b": broken})


def test_comparing_needs_no_torch() -> None:
    code = "import sys, slmkit.evaluate.compare; print({'torch', 'scipy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
