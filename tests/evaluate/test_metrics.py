"""A metric of a file of its own is in the scores, the report, the page and the comparison."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from evaluated import make_chain

from slmkit.codec.melvq import MelVQ
from slmkit.data.index import Corpus
from slmkit.evaluate.compare import compare_directories
from slmkit.evaluate.generation import copy_synthesis
from slmkit.evaluate.metrics import REGISTRY, Metric, Scores, families, measures, single
from slmkit.evaluate.metrics.likeness import frame_agreement
from slmkit.evaluate.report import write_page
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import select
from slmkit.evaluate.spoken import Spoken, Tools, Truths
from slmkit.infer.request import SpeakingSettings

PEAK = Metric(
    name="peak", label="peak level", unit="%", better="lower", digits=1, order=200, note="The largest sample."
)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"), max_steps=0)


@pytest.fixture
def peak() -> Iterator[None]:
    @measures(PEAK)
    def measure(spoken: Spoken) -> Scores:
        return {"peak": single(float(np.abs(spoken.wave).max())) if spoken.record.frames else None}

    yield
    REGISTRY.pop("peak", None)


@pytest.mark.full
@pytest.mark.usefixtures("peak")
def test_a_metric_of_another_file_is_scored_shown_and_compared(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    truths, told = Truths(corpus, codec), list[str]()
    for name in ("one", "two"):
        copy_synthesis(codec, corpus, select(corpus, limit=2), SpeakingSettings(), tmp_path / name)
        report = score_outputs(tmp_path / name, truths, Tools(), tell=told.append)
        write_page(tmp_path / name, report, truths)
    peaks = [float(np.abs(truths.copy(number)).max()) for number in (0, 1)]
    mean = report["summary"]["all"]["metrics"]["peak"]["mean"]
    assert mean == pytest.approx(np.mean(peaks), abs=1e-4)
    assert any(line.split()[:4] == ["peak", "level", "%", f"{100 * mean:.1f}"] for line in told)
    page = (tmp_path / "one" / "report.html").read_text()
    assert "<bdi>peak level %</bdi>" in page
    assert "The largest sample" in page
    assert "peak level" in page[page.index("among the worst by") :]
    del REGISTRY["peak"]  # a report describes its metrics itself
    comparison = compare_directories([tmp_path / "one", tmp_path / "two"], tmp_path / "table")
    assert comparison["models"]["two"]["peak"]["mean"] == mean
    assert comparison["differences"]["two"]["peak"]["mean"] == 0
    assert "<bdi>peak level %</bdi>" in (tmp_path / "table" / "report.html").read_text()


def test_a_name_is_given_once() -> None:
    names = [metric.name for family in families() for metric in family.metrics]
    assert len(set(names)) == len(names) > 15
    with pytest.raises(ValueError, match="the metric wer is registered already"):
        measures(Metric(name="wer", label="", note="", order=1))


def test_frames_are_compared_by_stream() -> None:
    reference, generated = np.array([[1, 2, 3], [1, 2, 3]]), np.array([[1, 2, 3, 4], [1, 0, 3, 4]])
    assert frame_agreement(reference, generated).tolist() == [3 / 4, 2 / 4]
    assert frame_agreement(reference[:, :0], generated[:, :0]).tolist() == [1, 1]
    with pytest.raises(ValueError, match="2 streams against 1"):
        frame_agreement(reference, generated[:1])
