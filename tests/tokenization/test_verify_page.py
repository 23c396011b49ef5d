"""The page of a verification in a real browser: players and pictures load, and hostile texts stay texts.

Set SLMKIT_SCREENSHOTS to a directory to keep the screenshots.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import browser as browsers
import numpy as np
import pytest
import torch
from browser import Browser
from rewritten import rewrite
from tiny_codec import SPEC, TinyCodec

from slmkit.data.index import Corpus, ShardIndex, write_manifest
from slmkit.data.shards import Sample, ShardWriter
from slmkit.errors import UserError
from slmkit.texts import visible
from slmkit.tokenization import verify
from slmkit.tokenization.copies import Copy
from slmkit.tokenization.integrity import ShardProblem, check_shards
from slmkit.tokenization.verify import Verification

RATE, HOP = 16000, 200
OWNED = "document.title='owned'"
SCRIPT = (
    f'</bdi></h3><script>{OWNED}</script><img src="x" onerror="{OWNED}"><iframe src="http://127.0.0.1:9/"></iframe>'
)
TEXTS = (
    "An ordinary sentence.",
    SCRIPT,
    "\u202eright to left \u05e9\u05dc\u05d5\u05dd",
    "word" * 200,
    "lone ?????? & \x07",
)
KEY = f'"><svg onload={OWNED}>'


class Whistle(TinyCodec):
    """Decodes every frame to a tone: of its own for each utterance."""

    def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(tone(int(codes[0, 0, 0]), codes.shape[2]))[None]


def tone(number: int, num_frames: int) -> np.ndarray:
    seconds = np.arange(num_frames * HOP) / RATE
    return (0.5 * np.sin(2 * np.pi * 300 * (number + 1) * seconds * (1 + seconds))).astype(np.float32)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a corpus of hostile texts, one not even Unicode, that lacks a planned utterance; one sample has no source."""
    directory = tmp_path_factory.mktemp("page")
    writer = ShardWriter(directory / "c", "c", 0)
    for number, text in enumerate(TEXTS):
        meta = {
            "text": text,
            "speaker": SCRIPT if number == 1 else "11",
            "language": "en",
            "source": f"{KEY}/{number}.flac",
            "seconds": 1.0,
            "checks": {"clipped": 0.02 * number, "chars_per_sec": 15.2, KEY: 1.0},
        }
        codes = np.full((2, 80 + 20 * number), number, np.uint16)
        writer.add(Sample(f"{KEY}{number}", codes, np.zeros(2, np.float32), meta))
    writer.commit()
    rewrite(directory / "c/c-000000.tar", b"lone ??????", b"lone \\ud800")
    index = ShardIndex.read(directory / "c/c-000000.index.json")
    write_manifest(directory / "c", "c", SPEC, [index.summary], {})

    def source(shard: int, key: str) -> np.ndarray | None:
        return None if key.endswith("3") else tone(int(key[-1]), 90)

    def check(corpus: Corpus, *_: object) -> Iterator[ShardProblem]:
        return check_shards(corpus, lambda shard: [*index.keys, KEY])

    with pytest.MonkeyPatch.context() as planned, pytest.raises(UserError, match="1 file is damaged"):
        planned.setattr(verify, "planned_audio", lambda *_: source)
        planned.setattr(verify, "check_shards", check)
        verify.verify_corpus(directory / "c", Whistle(), samples=5, report=directory / "report")
    return directory / "report"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if browsers.executable() is None:
        pytest.skip("Chromium is not installed")
    with Browser.open(tmp_path_factory.mktemp("browser"), height=2600) as opened:
        yield opened


@pytest.mark.full
def test_players_and_pictures_load_and_no_text_becomes_code(browser: Browser, report: Path, tmp_path: Path) -> None:
    browser.go((report / "index.html").as_uri())
    browser.wait_for("document.readyState === 'complete'")
    browser.wait_for("[...document.querySelectorAll('audio')].every((audio) => audio.duration > 0.9)")
    browser.screenshot(Path(os.environ.get("SLMKIT_SCREENSHOTS", tmp_path)) / "verify.png")
    assert browser.value("document.querySelectorAll('audio').length") == 9
    widths = browser.value("[...document.querySelectorAll('img')].map((image) => image.naturalWidth)")
    assert len(widths) == 5
    assert min(widths) > 400
    assert browser.value("document.title") == "c verified"
    assert browser.value("document.querySelectorAll('script, iframe, svg').length") == 0
    shown = set(browser.value("[...document.querySelectorAll('h3')].map((heading) => heading.textContent)"))
    assert set(map(visible, TEXTS[:3])) <= shown
    assert repr(KEY) in browser.value("document.querySelector('table').textContent")
    assert browser.value("performance.getEntriesByType('resource').every((one) => one.name.startsWith('file:'))")
    assert browser.value("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.full
def test_scripts_that_got_in_would_not_run(browser: Browser, report: Path, tmp_path: Path) -> None:
    """The page forbids them, should escaping ever fail."""
    page = (report / "index.html").read_text()
    (tmp_path / "index.html").write_text(page.replace("</body>", f"<script>{OWNED}</script></body>"))
    browser.go((tmp_path / "index.html").as_uri())
    browser.wait_for("document.readyState === 'complete' && document.scripts.length === 1")
    assert browser.value("document.title") == "c verified"


def copy(name: str, distance_db: float | None, other_db: float | None = None, **changes: object) -> Copy:
    values = {"text": name, "speaker": "", "language": "", "source": "", "seconds": 1.0, "checks": {}}
    return Copy(name=name, shard="c.tar", key=name, distance_db=distance_db, other_db=other_db, **{**values, **changes})


def page_of(problems: Sequence[ShardProblem] = (), copies: Sequence[Copy] = ()) -> str:
    counts = {"shards": 2, "samples": 5, "seconds": 1.0, "failures": 0, "outliers": {}, "seed": 0}
    lists = {"problems": tuple(problems), "copies": tuple(copies)}
    return Verification(corpus="c", codec="tiny", **counts, **lists).page()


def test_doubtful_copies_and_large_distances_come_first() -> None:
    copies = [copy("none", None), copy("good", 5.0, 15.0), copy("poor", 9.0, 15.0), copy("wrong", 8.0, 7.0)]
    page = page_of(copies=copies)
    assert [part.split("<")[0] for part in page.split('<h3 dir="auto"><bdi>')[1:]] == ["wrong", "poor", "good", "none"]
    assert page.count('<article class="doubtful">') == 1
    assert "<strong>9.0 dB</strong> from its source, 15.0 dB to another utterance" in page
    assert 'style="width: 60.0%"' in page  # 9 of 15


def test_the_verdict_counts_files() -> None:
    def verdict(*names: str) -> str:
        return page_of([ShardProblem(name, "is odd") for name in names])

    assert "Every shard is whole" in verdict()
    assert "1 file is damaged or not as planned" in verdict("a.tar", "a.tar")
    assert "2 files are damaged or not as planned" in verdict("a.tar", "b.tar", "a.tar")
    assert "Decoded samples" not in verdict()


def test_checks_beyond_their_limits_are_marked() -> None:
    page = page_of(copies=[copy("a", 0.0, 0.0, checks={"clipped": 0.5, "dc": 0.0})])
    assert '<li class="odd"><bdi>clipped</bdi> 0.5</li>' in page
    assert "<li><bdi>dc</bdi> 0</li>" in page


def test_long_texts_are_shortened_on_the_page_alone(report: Path) -> None:
    assert "word" * 149 + "wor…" in (report / "index.html").read_text()
    assert "word" * 200 in {copy["text"] for copy in json.loads((report / "verify.json").read_text())["copies"]}
