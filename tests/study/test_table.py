"""The table of a study, from made-up scores: what it shows, and that texts of strangers stay texts."""

import json
from pathlib import Path
from typing import Any

import pytest

from slmkit.cli.main import main
from slmkit.config.load import from_dict, to_yaml
from slmkit.evaluate.metrics import Metric
from slmkit.evaluate.results import metrics_of
from slmkit.pages import latex, markdown
from slmkit.study.config import StudyConfig
from slmkit.study.plan import StudyPlan, plan_study
from slmkit.study.table import tables_of, text_table, write_table
from slmkit.study.work import look, paths

SHOWN = {  # metric: (title, better)
    "success": ("success", "higher"),
    "wer": ("WER", "lower"),
    "real_time_factor": ("RTF", "lower"),
}
TEXT = "<script>alert(1)</script> 5 & 6_7 | *8*"


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    values = {
        "out": str(tmp_path / "OUT"),
        "title": "Groups & <heads>",
        "corpora": {"c": {"source": "audio"}},
        "codecs": {"a": {"path": "ORG/A"}, "b": {"path": "ORG/B"}},
        "bases": {"qwen": {"path": "ORG/Q"}},
        "groups": [0, 12],
        "stages": [{"name": "s", "config": "quickstart", "sources": [{"corpus": "c"}]}],
        "evaluations": {"said": {"corpus": "c", "copy_options": ""}},
    }
    return plan_study(from_dict(StudyConfig, values))


def finish(plan: StudyPlan, label: str, **means: float) -> None:
    """Make the scores of a model appear."""
    step = plan.step(f"scores-{label}-said")
    directory = Path(step.directory)
    metrics: list[dict[str, Any]] = [
        {"name": name, "label": title, "note": "", "order": order, "better": better, "digits": 2}
        for order, (name, (title, better)) in enumerate(SHOWN.items())
        if name in means
    ]
    summary = {
        name: {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "counted": 1, "left_out": 0}
        for name, mean in means.items()
    }
    row = {"key": "k", "voice": "own", "voice_key": "k", "text": TEXT, "question": "", "scores": {}, "place": 0}
    settings = {"task": "tts", "codec": {"name": "a", "weights_sha256": ""}}
    report = {"names": {}, "settings": settings, "outputs_sha256": "", "measured_with": {}, "metrics": metrics}
    report |= {"summary": {"all": {"utterances": 1, "metrics": summary}}, "utterances": [row]}
    (directory / "wav").mkdir(parents=True)
    (directory / "wav" / "00000.wav").write_bytes(label.encode())
    (directory / "report.json").write_text(json.dumps(report))
    assert all(isinstance(metric, Metric) for metric in metrics_of(report).values())
    record(plan, step.name, "done")
    for need in plan.all_needs(step.name):
        Path(plan.step(need).directory).mkdir(parents=True, exist_ok=True)
        record(plan, need, "done")


def record(plan: StudyPlan, name: str, state: str, why: str = "") -> None:
    path = paths(plan, plan.step(name))[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"digest": plan.step(name).digest, "state": state, "why": why}))


def fill(plan: StudyPlan) -> None:
    """Codec a is done, b failed in training NTP, and its other model has not begun."""
    finish(plan, "a-copy", success=1.0, wer=0.01)
    finish(plan, "a-qwen-ntp-s", success=0.9, wer=0.2, real_time_factor=2.0)
    finish(plan, "a-qwen-mtp12-linear-mlp-s", success=0.9, wer=0.3, real_time_factor=0.1)
    record(plan, "shards-c-b", "done")
    Path(plan.step("shards-c-b").directory).mkdir(parents=True)
    record(plan, "train-b-qwen-ntp-s", "failed", "exit code 2: <b>no</b> memory_left")


def test_rows_are_models_and_say_why_they_have_no_scores(plan: StudyPlan) -> None:
    fill(plan)
    (table,) = tables_of(plan, look(plan))
    assert [metric.name for metric in table.columns] == ["success", "wer", "real_time_factor"]
    lines = {line.label: line for line in table.lines}
    assert list(lines) == ["a, codec alone", "a NTP", "a MTP-12", "b, codec alone", "b NTP", "b MTP-12"]
    assert [value and (value.mean, value.is_best) for value in lines["a NTP"].values] == [
        *(("0.90", False), ("0.20", True), ("2.00", False)),
    ]
    copy = lines["a, codec alone"].values
    assert (copy[1], copy[2]) == (("0.01", "0.00 to 0.02", False), None), "a copy is no model and never the best"
    assert lines["b NTP"].why == "failed: train-b-qwen-ntp-s, exit code 2: <b>no</b> memory_left"
    assert lines["b MTP-12"].why == "not done: 3 steps are left"
    assert lines["b, codec alone"].why == "not done: 1 step is left"
    assert text_table(plan, look(plan))[2] == "a NTP                0.90  0.20*   2.00"


def test_page_markdown_and_latex_hold_the_same_and_texts_stay_texts(plan: StudyPlan) -> None:
    fill(plan)
    out = write_table(plan, look(plan)).parent
    page = (out / "index.html").read_text()
    assert "<script>" not in page
    assert "Groups &amp; &lt;heads&gt;" in page
    assert "&lt;b&gt;no&lt;/b&gt; memory_left" in page
    assert page.count("<audio") == 3
    assert 'src="listen/said-0-001.wav"' in page
    assert (out / "listen" / "said-0-001.wav").read_bytes() == b"a-qwen-ntp-s"
    assert 'href="../scores/a-qwen-ntp-s-said/report.html"' in page
    assert (out / "said.png").read_bytes().startswith(b"\x89PNG")
    lines = (out / "table.md").read_text().splitlines()
    assert lines[0] == "# Groups & &lt;heads>"
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| model | success ↑ | WER ↓ | RTF ↓ |"
    assert table[3] == "| a NTP | 0.90 | **0.20** | 2.00 |"
    assert table[6].startswith("| b NTP | *failed: train-b-qwen-ntp-s, exit code 2: &lt;b>no&lt;/b> memory\\_left* |")
    assert {line.count("|") for line in table} == {5}
    tex = (out / "table.tex").read_text()
    assert r"\caption{Groups \& \textless{}heads\textgreater{}: said}" in tex
    assert r"a NTP & 0.90 & \textbf{0.20} & 2.00 \\" in tex
    assert r"b MTP-12 & \multicolumn{3}{l}{\emph{not done: 3 steps are left}} \\" in tex
    assert r"\begin{tabular}{lrrr}" in tex
    assert tex.count("{") - tex.count(r"\{") == tex.count("}") - tex.count(r"\}")


def test_a_table_of_nothing_is_a_table(plan: StudyPlan) -> None:
    out = write_table(plan, look(plan)).parent
    assert "not done" in (out / "table.md").read_text()
    assert "not done" in (out / "table.tex").read_text()
    assert "not done" in (out / "index.html").read_text()


def test_special_characters() -> None:
    assert markdown("a|b\n*c* <d>") == "a\\|b \\*c\\* &lt;d>"
    assert latex(r"50% \x{_}~^") == r"50\% \textbackslash{}x\{\_\}\textasciitilde{}\textasciicircum{}"


def test_status_and_table_of_the_command(plan: StudyPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(plan)
    study = tmp_path / "study.yaml"
    study.write_text(to_yaml(plan.config))
    assert main(["study", "status", str(study)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"9 of {len(plan.steps)} steps are done"
    assert any(line.endswith("failed, exit code 2: <b>no</b> memory_left") for line in lines)
    assert main(["study", "status", str(study), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores-b-qwen-ntp-s-said"]["why"] == "train-b-qwen-ntp-s"
    assert main(["study", "table", str(study)]) == 0
    assert "a MTP-12" in capsys.readouterr().out
