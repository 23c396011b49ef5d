"""The page of an evaluation in a real browser: players and pictures load, and hostile texts stay texts.

Set SLMKIT_SCREENSHOTS to a directory to keep the screenshots.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import browser as browsers
import numpy as np
import pytest
import torch
from browser import Browser
from rewritten import rewrite
from synthetic import write_samples
from tiny_codec import SPEC, TinyCodec

from slmkit.data.index import Corpus, ShardIndex, index_path, write_manifest
from slmkit.data.shards import Sample
from slmkit.evaluate.generation import copy_synthesis
from slmkit.evaluate.metrics import families
from slmkit.evaluate.report import failure_of, worst, write_page
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import select
from slmkit.evaluate.spoken import Tools, Truths
from slmkit.infer.request import SpeakingSettings

OWNED = "document.title='owned'"
SCRIPT = f'</bdi></h3></title><script>{OWNED}</script><img src="x" onerror="{OWNED}"><svg onload="{OWNED}">'
TEXTS = ("An ordinary sentence.", SCRIPT, "\u202eright to left \u05e9\u05dc\u05d5\u05dd", "word" * 400, "lone ??????")


class Buzz(TinyCodec):
    """Decodes each frame to noise as loud as its first code says."""

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(codes.shape[2] * SPEC.hop_samples, generator=torch.Generator().manual_seed(0)) - 0.5
        return (noise * codes[0, 0].repeat_interleave(SPEC.hop_samples) / 1024)[None]


class Echo:
    """A recognizer that hears something hostile."""

    spellings: dict[str, str] = {}  # noqa: RUF012 - as the protocol has it

    def text(self, wave: np.ndarray, sample_rate: int) -> str:
        return SCRIPT


@pytest.mark.full
@pytest.mark.skipif(browsers.executable() is None, reason="Chromium is not installed")
def test_sounds_and_pictures_load_and_no_text_becomes_code(tmp_path: Path) -> None:
    samples = []
    for number, text in enumerate(TEXTS):
        meta = {"text": text, "speaker": SCRIPT, "language": "en", "source": SCRIPT, "seconds": 1.0}
        meta |= {"question": SCRIPT, "answer": SCRIPT}
        codes = np.full((2, 80 + 40 * number), 200, np.uint16)
        samples.append(Sample(f"{SCRIPT}{number}", codes, np.ones(2, np.float32), meta))
    tar = write_samples(tmp_path / "c", samples, SPEC).shards[0].tar
    rewrite(tmp_path / "c" / tar, b"lone ??????", b"lone \\ud800")
    write_manifest(tmp_path / "c", "c", SPEC, [ShardIndex.read(index_path(tmp_path / "c", tar)).summary], {})
    corpus, codec, out = Corpus.open(tmp_path / "c"), Buzz(), tmp_path / "out"
    copy_synthesis(codec, corpus, select(corpus), SpeakingSettings(), out, task="qa")
    truths = Truths(corpus, codec)
    tools = Tools(recognizer=Echo())
    report = score_outputs(out, truths, tools, measured_with={"asr": SCRIPT}, unseen=frozenset([SCRIPT]))
    report["names"]["model"] = SCRIPT
    write_page(out, report, truths)
    with Browser.open(tmp_path, height=2600) as browser:
        browser.go((out / "report.html").as_uri())
        browser.wait_for("document.readyState === 'complete'")
        browser.wait_for("[...document.querySelectorAll('audio')].every((audio) => audio.duration > 0.9)")
        browser.screenshot(Path(os.environ.get("SLMKIT_SCREENSHOTS", tmp_path)) / "report.png")
        count = len(worst(report))
        assert count >= 3
        assert browser.value("document.querySelectorAll('audio').length") == 2 * count
        widths = browser.value("[...document.querySelectorAll('img')].map((image) => image.naturalWidth)")
        assert len(widths) == count + 1
        assert min(widths) > 400
        assert browser.value("document.title").startswith("Evaluation of </bdi></h3></title><script>")
        assert browser.value("document.querySelectorAll('script, iframe, svg').length") == 0
        assert browser.value("performance.getEntriesByType('resource').every((one) => one.name.startsWith('file:'))")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"reason": "refused", "why": "the codec failed", "frames": 0}, "There is no answer: the codec failed."),
        ({"reason": "runaway", "limit": "loop", "frames": 9}, "Stopped by the watch (loop): it would not have ended."),
        ({"reason": "limit", "limit": "text_tokens", "frames": 0}, "Cut off at the limit of text tokens."),
        ({"reason": "end", "warning": "short", "frames": 1}, "The speech is far shorter than its text."),
        ({"reason": "end", "warning": "short", "frames": 0}, "The model ended its answer without speech."),
        ({"reason": "end", "warning": None, "frames": 9}, ""),
    ],
)
def test_what_is_wrong_with_an_utterance_is_said(row: dict[str, Any], expected: str) -> None:
    assert failure_of(row) == expected


def report_of(*scores: dict[str, list[float] | None]) -> dict[str, Any]:
    described = [asdict(metric) for family in families() for metric in family.metrics]
    return {"metrics": described, "utterances": [{"place": i, "scores": each} for i, each in enumerate(scores)]}


def test_the_worst_come_first_and_only_where_rows_differ() -> None:
    report = report_of(
        {"wer": [0, 10], "success": [1, 1]},
        {"wer": [5, 10], "success": [1, 1]},
        {"wer": [9, 10], "success": [0, 1], "codec_similarity": None},
        {"wer": [1, 10], "success": [1, 1], "codec_similarity": [0.5, 1]},
    )
    chosen = [(found["place"], labels) for found, labels in worst(report, 2)]
    assert chosen == [(2, ["success", "WER", "SIM codec"]), (1, ["WER"])]
    equal = report_of(*[{"wer": [0, 10], "success": [1, 1]}] * 5)
    assert [(found["place"], labels) for found, labels in worst(equal, 2)] == [(0, []), (1, [])]
