"""The page in a real browser: type, choose a voice, listen.

Set SLMKIT_SCREENSHOTS to a directory to keep the screenshots.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import browser as browsers
import numpy as np
import pytest
from browser import Browser
from serve.serving import TEXT, Client, Gate, serving, until

from slmkit.infer.synthesizer import Synthesizer

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(browsers.executable() is None, reason="Chromium is not installed"),
]
VOICES = "[...document.querySelectorAll('#voice option')].map((option) => option.textContent).join()"
ERROR = "!document.getElementById('error').hidden && document.getElementById('error').textContent"
STATUS = "document.getElementById('status').textContent"
DURATION = "document.getElementById('audio').duration"
DONE = 'requests_total{outcome="done"}'
IS_DONE = f"!document.getElementById('result').hidden && {DURATION} > 0"


@pytest.fixture(scope="module")
def client(synthesizer: Synthesizer, chain: Path) -> Iterator[Client]:
    with serving(synthesizer, chain, max_sec=1.5, max_chars=200) as (_, made):
        yield made


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.open(tmp_path_factory.mktemp("browser"), width=900, height=760) as opened:
        yield opened


@pytest.fixture
def page(browser: Browser, client: Client) -> Browser:
    """Freshly loaded."""
    browser.go("about:blank")
    browser.complaints.clear()
    browser.go(f"http://localhost:{client.port}/")
    browser.wait_for(f"document.readyState === 'complete' && {VOICES}")
    return browser


def write(page: Browser, text: str) -> None:
    """In place of what is there, key by key."""
    page.value("document.getElementById('text').value = ''")
    page.click("#text")
    page.type(text)


def keep(page: Browser, name: str, directory: Path) -> None:
    """A screenshot that is not blank."""
    from PIL import Image

    path = directory / f"{name}.png"
    page.screenshot(path)
    assert len(set(Image.open(path).convert("L").resize((90, 76)).getdata())) > 5
    if kept := os.environ.get("SLMKIT_SCREENSHOTS"):
        shutil.copy(path, Path(kept) / f"serve_{name}.png")


def test_a_text_is_heard_in_the_voice_that_was_chosen(page: Browser, client: Client, tmp_path: Path) -> None:
    assert page.value(VOICES) == "anna,bert"
    assert page.value("document.title") == "tiny"
    done_before = client.figure(DONE)
    page.value("make = URL.createObjectURL; URL.createObjectURL = (blob) => make(window.made = blob)")
    sounds = {}
    for voice in ("anna", "bert"):
        write(page, TEXT)
        page.value(f"document.getElementById('voice').value = {voice!r}")
        page.click("#speak")
        page.wait_for(IS_DONE)
        assert page.value(DURATION) == pytest.approx(1.5, abs=0.01)
        sounds[voice] = bytes(page.value("window.made.arrayBuffer().then((b) => [...new Uint8Array(b)])"))
        page.value("document.getElementById('result').hidden = true")
    assert client.figure(DONE) == done_before + 2
    for voice, sound in sounds.items():
        whole = client.speech(voice=voice, max_sec=1.5).content
        assert sound[:44] == whole[:44]  # the length is known by now
        assert len(sound) == len(whole)
    assert sounds["anna"] != sounds["bert"]
    assert "1.50 s of speech (stopped at the limit: seconds), ready after" in page.value(STATUS)
    page.value("document.getElementById('result').hidden = false")
    keep(page, "spoken", tmp_path)
    assert page.complaints == []


def test_the_sound_can_be_played(page: Browser) -> None:
    write(page, TEXT)
    page.click("#speak")
    page.wait_for(IS_DONE)
    audio = "document.getElementById('audio')"
    page.value(f"{audio}.play()")
    page.wait_for(f"{audio}.ended")
    assert page.value(f"{audio}.error === null && {audio}.played.length > 0 && {audio}.played.end(0) > 1.4")
    assert page.complaints == []


def test_an_empty_text_is_named_on_the_page(page: Browser, client: Client, tmp_path: Path) -> None:
    done = client.figure(DONE)
    for text in ("", "  "):
        write(page, text)
        page.click("#speak")
        assert page.wait_for(ERROR) == "Type a sentence first."
    keep(page, "empty", tmp_path)
    assert client.figure(DONE) == done
    assert page.complaints == []
    write(page, "Hello.")
    page.click("#speak")
    page.wait_for(IS_DONE)
    assert page.value(ERROR) is False


def test_what_the_server_refuses_is_named_on_the_page(page: Browser) -> None:
    write(page, "Hello.")
    page.value("document.getElementById('text').value = 'x'.repeat(201)")
    page.click("#speak")
    assert "has 201 characters; split it into parts; expected at most 200" in page.wait_for(ERROR)
    assert page.value("document.getElementById('speak').disabled") is False


def test_the_page_keeps_to_the_limits_of_the_server_and_its_own(page: Browser, client: Client) -> None:
    done = client.figure(DONE)
    write(page, "x" * 201)
    assert page.value("document.getElementById('text').value.length") == 200
    assert page.value("document.getElementById('length').textContent") == "200 of at most 200 characters"
    for name, values in {"temperature": ("5", "-1", "0.123"), "seed": ("-1", "1.5", "1e30")}.items():
        for value in values:
            page.value(f"document.getElementById('{name}').value = '{value}'")
            page.click("#speak")
            assert page.wait_for(ERROR).lower().startswith(f"{name}: ")
        page.value(f"document.getElementById('{name}').value = '0'")
    assert client.figure(DONE) == done
    assert page.complaints == []


def test_an_answer_given_up_and_one_cut_by_the_server(browser: Browser, synthesizer: Synthesizer, chain: Path) -> None:
    with serving(synthesizer, chain, max_sec=60.0) as (server, client):
        browser.go(f"http://127.0.0.1:{client.port}/")
        browser.wait_for(f"document.readyState === 'complete' && {VOICES}")
        browser.complaints.clear()
        write(browser, TEXT)
        browser.click("#speak")
        browser.wait_for(f"{STATUS}.startsWith('Speaking')")
        browser.click("#stop")
        until(lambda: client.figure("running_requests") == 0)
        browser.wait_for("document.getElementById('stop').disabled")
        assert client.figure('requests_total{outcome="given_up"}') == 1
        assert browser.value(ERROR) is False
        browser.click("#speak")
        browser.wait_for(f"{STATUS}.startsWith('Speaking')")
        server.close()
        assert browser.wait_for(ERROR) == "the server is shutting down"
        assert browser.complaints == []


SPOKEN = "[...document.querySelectorAll('audio')].every((audio) => audio.closest('[hidden]') || audio.duration > 0)"
OPTIONS = "[...document.querySelectorAll('#voice option')].map((option) => option.textContent)"


def choose_file(page: Browser, data: bytes) -> None:
    """As a sound file of one's own."""
    page.value(
        "{ document.getElementById('own').open = true; const files = new DataTransfer();"
        f"files.items.add(new File([Uint8Array.from({list(data)})], 'mine.wav'));"
        "document.getElementById('recording').files = files.files;"
        "document.getElementById('recording').dispatchEvent(new Event('change')); }"
    )


def test_a_voice_of_ones_own_speaks_and_is_forgotten(page: Browser, client: Client, chain: Path) -> None:
    page.value("make = URL.createObjectURL; URL.createObjectURL = (blob) => make(window.made = blob); 0")
    choose_file(page, (chain / "voices" / "bert.wav").read_bytes())
    page.wait_for("document.getElementById('own-status').textContent.startsWith('Measured 1.0 s')")
    assert page.value(OPTIONS) == ["Your recording", "anna", "bert"]
    assert page.value("document.getElementById('voice').selectedOptions[0].textContent") == "Your recording"
    write(page, TEXT)
    page.click("#speak")
    page.wait_for(IS_DONE)
    made = bytes(page.value("window.made.arrayBuffer().then((b) => [...new Uint8Array(b)])"))
    bert = client.speech(voice="bert", max_sec=1.5).content
    assert abs(np.frombuffer(made[44:], "<i2").astype(int) - np.frombuffer(bert[44:], "<i2")).max() <= 1
    page.click("#forget")
    assert page.value(OPTIONS) == ["anna", "bert"]
    choose_file(page, b"no sound at all")
    assert "recording: unreadable: " in page.wait_for(ERROR)
    assert page.value(OPTIONS) == ["anna", "bert"]
    assert page.value("Object.keys(localStorage).length + Object.keys(sessionStorage).length") == 0


def test_questions_and_two_answers_side_by_side(
    page: Browser, client: Client, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What the model writes is text, whatever it looks like."""
    evil = "<img src=x onerror='window.owned = 1'>\u202e <script>window.owned = 1</script>"
    monkeypatch.setattr(synthesizer, "words_of", lambda output: SimpleNamespace(text=evil))
    done = client.figure(DONE)
    page.click("label[for=ask]")
    page.value("document.getElementById('settings').open = true")
    page.click("#compare")
    page.value("document.getElementById('temperature').value = document.getElementById('second-temperature').value = 1")
    page.click("#examples button")
    assert page.value("document.getElementById('text').value") == "Who are you, and what do you do all day?"
    page.click("#speak")
    page.wait_for(f"{IS_DONE} && !document.getElementById('second-result').hidden && {SPOKEN}")
    assert client.figure(DONE) == done + 2
    for name in ("words", "second-words"):
        assert page.value(f"document.getElementById('{name}').textContent") == evil
    assert page.value("window.owned === undefined && document.querySelectorAll('article img').length === 0")
    sizes = "['audio', 'second-audio'].map((id) => document.getElementById(id).src)"
    first, second = page.value(sizes)
    assert first != second
    keep(page, "two", tmp_path)
    page.value("document.getElementById('second-top_p').value = '7'")
    page.click("#speak")
    assert page.wait_for(ERROR).lower().startswith("top p: ")
    page.click("#compare")
    assert page.value("document.getElementById('second-answer').hidden")
    page.click("#speak")  # what is hidden is not asked for
    page.wait_for(f"{IS_DONE} && !document.getElementById('speak').disabled")
    assert client.figure(DONE) == done + 3
    assert page.complaints == []


def test_who_waits_sees_the_place_in_the_queue(
    page: Browser, client: Client, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(3) as others:
        gate = Gate(synthesizer, monkeypatch)
        for number in (1, 2, 3):
            others.submit(client.speech, max_sec=0.2)
            until(lambda: client.figure("running_requests") + client.figure("waiting_requests") >= number)  # noqa: B023
        write(page, TEXT)
        page.value(
            "seen = []; new MutationObserver(() => seen.push(document.getElementById('status').textContent))"
            ".observe(document.getElementById('status'), {childList: true}); 0"
        )
        page.click("#speak")
        until(lambda: client.figure("waiting_requests") >= 1)
        assert page.value("!document.getElementById('progress').hidden")
        gate.open()
        page.wait_for(IS_DONE)
    seen = page.value("seen")
    assert seen[0] == "Waiting"
    assert any(text.startswith("Waiting, number ") for text in seen)
    assert "Beginning" in seen
    assert any(text.startswith("Speaking, ") for text in seen)


BACKGROUND = "getComputedStyle(document.body).backgroundColor"
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.mark.parametrize(("name", "width", "dark"), [("light", 900, False), ("dark", 900, True), ("phone", 360, True)])
def test_the_pages_fit_phones_and_follow_the_dark_preference(
    name: str, width: int, dark: bool, page: Browser, client: Client, tmp_path: Path
) -> None:
    try:
        page.emulate(width=width, height=1700 if name == "phone" else 1100, dark=dark)
        page.value("for (const part of document.querySelectorAll('details')) part.open = true")
        page.click("#compare")
        write(page, TEXT)
        page.click("#speak")
        page.wait_for(IS_DONE)
        for path in ("page", "docs"):
            if path == "docs":
                page.go(f"http://localhost:{client.port}/docs")
                page.wait_for("document.querySelectorAll('dt').length > 20")
            assert page.value(OVERFLOW) <= 0
            assert page.value(BACKGROUND) == ("rgb(20, 23, 27)" if dark else "rgb(245, 247, 249)")
            keep(page, f"{path}_{name}", tmp_path)
    finally:
        page.emulate(width=900, height=760, dark=False)
    assert page.complaints == []


def test_nothing_comes_from_elsewhere(page: Browser, client: Client) -> None:
    loaded = "performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)"
    assert set(page.value(loaded)) == {f"http://localhost:{client.port}"}
    policy = client.get("/").headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'")
    assert "unsafe" not in policy
    script = "document.head.append(Object.assign(document.createElement('script'), {text: 'window.owned = 1'}))"
    assert page.value(f"{script}; window.owned === undefined") is True
    assert page.value("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert sum("Content Security Policy" in complaint for complaint in page.complaints) >= 2
