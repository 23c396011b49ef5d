"""The server as a process: it says where it listens, and ends well when it is told to."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from serve.serving import Client, make_chain, read_all

from slmkit import log
from slmkit.cli.main import main

STARTED = re.compile(r"listening at http://127\.0\.0\.1:(\d+) with 2 voices: anna, bert\n")


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("serve"))


def words(chain: Path, *more: str) -> list[str]:
    places = [str(chain / "model"), "--codec", str(chain / "codec"), "--voices", str(chain / "voices")]
    return ["serve", *places, "--port", "0", *more]


@pytest.mark.parametrize(("number", "is_busy"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_a_signal_ends_the_process_with_success(number: int, is_busy: bool, chain: Path, tmp_path: Path) -> None:
    """Also while it speaks, and when it is told twice."""
    command = [sys.executable, "-m", "slmkit", *words(chain, "--slots", "2", "--max-sec", "60", "--name", "tts-1")]
    env = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    with (
        (tmp_path / "log").open("w+") as log_file,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log_file, text=True, env=env) as process,
    ):
        try:
            assert process.stdout is not None
            started = STARTED.fullmatch(process.stdout.readline())
            assert started, (tmp_path / "log").read_text()
            client = Client(int(started[1]))
            assert client.speech(model="tts-1").status == 200
            other = client.begin(stream=True) if is_busy else client.open()
            assert not is_busy or other.recv(12) == b"HTTP/1.1 200"
            began = time.monotonic()
            process.send_signal(number)
            assert process.stdout.readline() == "stopping\n"
            process.send_signal(number)
            assert process.wait(40) == 0, (tmp_path / "log").read_text()
            assert (time.monotonic() - began > 4) or not is_busy  # a running answer had its time
            assert not read_all(other).endswith(b"0\r\n\r\n")
        finally:
            process.kill()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_what_a_user_can_mend_is_named(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "set_up", lambda: None)  # it would stay for the tests after this one
    (tmp_path / "none").mkdir()
    np.save(tmp_path / "other.npy", np.zeros(3, np.float32))
    bad = {
        ("--voices", str(tmp_path / "none")): "the folder holds no voices",
        ("--voices", str(tmp_path / "missing.wav")): "cannot take the voice of",
        ("--voices", str(tmp_path / "other.npy")): "the voice other is not of this codec",
        ("--host", "1.2.3.4"): "cannot listen at 1.2.3.4, port 0",
        ("--max-chars", "5000"): "texts cannot be so long",
        ("--max-sec", "nan"): "answers cannot be so long",
    }
    for more, message in bad.items():
        assert main(words(chain, *more)) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--port", "-1"), ("--slots", "0"), ("--max-waiting", "x")])
def test_what_is_no_number_is_refused_at_once(
    more: tuple[str, str], chain: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words(chain, *more))
    assert f"argument {more[0]}: invalid" in capsys.readouterr().err
