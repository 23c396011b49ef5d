"""The real TensorBoard shows what a run writes: curves in groups, pictures, sound and texts, in a real browser.

Set SLMKIT_SCREENSHOTS to a directory to keep the screenshots.
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser as browsers
import numpy as np
import pytest
from browser import ALL_ELEMENTS, Browser
from PIL import Image
from train.ranks import free_port

from slmkit import plot
from slmkit.audio.mel import HOP_SEC, log_mel
from slmkit.train.metrics import MetricsLog

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(browsers.executable() is None, reason="Chromium is not installed"),
]
RATE = 16_000
NAME = "pilot"  # of the run
TAGS = (
    "train/loss/a1",
    "train/accuracy/a1",
    "speed/tokens_per_sec",
    "speed/mfu",
    "optimizer/lr",
    "eval/loss",
    "speech/u1/mel",
)
START_SEC = 60
OPEN_GROUPS = """(() => {
    const icons = (name) => [...document.querySelectorAll(`button.group-toolbar mat-icon[svgicon=${name}_24px]`)];
    const closed = icons('expand_more');
    closed.forEach((icon) => icon.closest('button').click());
    return closed.length === 0 && icons('expand_less').length >= 5;
})()"""


def write_run(directory: Path) -> None:
    """What `train` and `SpeechSamples` write, but for the numbers."""
    log = MetricsLog(directory, 0, is_first=True)
    made = {"config": {"model": {"group": 3}, "optimizer": {"lr": 1e-3}}, "commit": "abc", "versions": {"torch": "2"}}
    log.start(0, processes=2, total_steps=20, made=made)
    for step in range(1, 21):
        loss = 4 * 0.9**step
        speeds = {"speed/mfu": 0.4, "speed/tokens_per_sec": 1000.0 + step}
        log.write(step, {"loss": loss, "loss/a1": loss, "accuracy/a1": 1 - loss / 4, "optimizer/lr": 1e-3, **speeds})
    log.write(20, {"eval/loss": 1.0})
    seconds = np.arange(RATE) / RATE
    waves = {
        "generated": (0.5 * np.sin(2 * np.pi * 300 * seconds * (1 + seconds))).astype(np.float32),
        "reference": (0.5 * np.sin(2 * np.pi * 600 * seconds)).astype(np.float32),
    }
    picture = plot.spectra({name: log_mel(wave, RATE) for name, wave in waves.items()}, sec_per_column=HOP_SEC)

    def show(writer: Any) -> None:
        for name, wave in waves.items():
            writer.add_audio(f"speech/u1/{name}", wave, 20, sample_rate=RATE)
        writer.add_image("speech/u1/mel", picture, 20, dataformats="HWC")

    log.plot(show)
    log.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a TensorBoard that serves a run."""
    directory = tmp_path_factory.mktemp("page") / NAME
    directory.mkdir()
    write_run(directory)
    port = free_port()
    words = [
        "--logdir",
        str(directory / "tensorboard"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--load_fast=false",
    ]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until_served(f"http://127.0.0.1:{port}/data/plugin/scalars/tags", b"train/accuracy/a1")
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.kill()
        server.wait()


def wait_until_served(url: str, word: bytes) -> None:
    deadline = time.monotonic() + START_SEC
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if word in answer.read():
                    return
        except (urllib.error.URLError, TimeoutError):
            pass
        time.sleep(0.3)
    pytest.fail(f"TensorBoard does not serve {url}")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.open(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


def keep(browser: Browser, name: str, directory: Path) -> np.ndarray:
    """The screenshot, float [height, width, 3]."""
    path = Path(os.environ.get("SLMKIT_SCREENSHOTS", directory)) / f"{name}.png"
    browser.screenshot(path)
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def has_curve(page: np.ndarray, left: float, top: float, right: float, bottom: float) -> bool:
    """Whether the upper half of a card, below its title, holds dots of the run's colour, a dark blue; all else is grey.

    The table below the curve has a dot of that colour too.
    """
    first, last = round(top + 0.15 * (bottom - top)), round(top + 0.55 * (bottom - top))
    chart = page[first:last, round(left) : round(right)]
    is_blue = (chart[..., 2] - chart[..., 0] > 25) & (chart.mean(axis=2) < 150)
    return int(is_blue.sum()) > 10


def test_curves_and_pictures(browser: Browser, address: str, tmp_path: Path) -> None:
    """All groups but the first two are closed until one opens them; a tag is shown as "loss /a1"."""
    browser.go(address + "#timeseries")
    browser.wait_for("document.querySelectorAll('scalar-card path').length > 0")
    browser.wait_for(OPEN_GROUPS)
    for tag in TAGS:
        browser.wait_for(f"document.body.innerText.replace(/\\s+/g, '').includes('{tag}')")
    browser.wait_for("[...document.querySelectorAll('scalar-card')].filter((e) => e.querySelector('path')).length >= 7")
    browser.wait_for(f"{ALL_ELEMENTS}.some((e) => e.tagName === 'IMG' && e.naturalWidth > 400)")
    cards = browser.value(
        "[...document.querySelectorAll('scalar-card')].map((e) => e.getBoundingClientRect())"
        ".map((box) => [box.left, box.top, box.right, box.bottom])"
    )
    deadline = time.monotonic() + START_SEC
    while not all(has_curve(keep(browser, "timeseries", tmp_path), *card) for card in cards):
        assert time.monotonic() < deadline, "a card has no curve"


def test_sound(browser: Browser, address: str, tmp_path: Path) -> None:
    """Chromium has read both sounds and knows how long they last."""
    browser.go(address + "#audio")
    players = f"{ALL_ELEMENTS}.filter((e) => e.tagName === 'AUDIO' && Math.abs(e.duration - 1) < 0.01)"
    browser.wait_for(f"{players}.length === 2")
    assert browser.value(f"{players}.every((e) => e.error === null && e.getBoundingClientRect().width > 100)")
    words = browser.value(f"{ALL_ELEMENTS}.map((e) => e.childElementCount ? '' : e.textContent).join(' ')")
    assert "speech/u1/generated" in words
    assert "speech/u1/reference" in words
    assert keep(browser, "audio", tmp_path).std() > 5


def test_texts(browser: Browser, address: str, tmp_path: Path) -> None:
    browser.go(address + "#text")
    words = f"{ALL_ELEMENTS}.map((e) => e.childElementCount ? '' : e.textContent).join(' ')"
    for text in ("started at step 0 of 20 on 2 processes, commit abc, torch 2", "optimizer:"):
        browser.wait_for(f"({words}).includes('{text}')")
    assert keep(browser, "text", tmp_path).std() > 5


def test_options_beside_the_name_of_the_run(browser: Browser, address: str, tmp_path: Path) -> None:
    browser.go(address + "#hparams")
    words = f"{ALL_ELEMENTS}.map((e) => e.childElementCount ? '' : e.textContent).join(' ')"
    for text in ("optimizer.lr", "model.group", NAME):
        browser.wait_for(f"({words}).includes('{text}')")
    assert keep(browser, "hparams", tmp_path).std() > 5
