"""The server as a process: it says where it listens, and ends well when it is told to."""

import re
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from forked import PIPE, Process
from serve.serving import Client, make_chain, read_all

from slmkit import log
from slmkit.audio.encode import FORMATS
from slmkit.cli import serve as command
from slmkit.cli.main import main

STARTED = re.compile(r"listening at http://127\.0\.0\.1:(\d+) with 2 voices: anna, bert\n")
GONE_SEC = 10.0  # after a stop the process is gone: 5 s for running answers, 1 s for their last bytes
BUSY_SEC = 50.0  # more, for a machine that has other work; the times are printed


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("serve"))


def words(chain: Path, *more: str) -> list[str]:
    places = [str(chain / "model"), "--codec", str(chain / "codec"), "--voices", str(chain / "voices")]
    return ["serve", *places, "--port", "0", *more]


@pytest.mark.parametrize(("number", "is_busy"), [(signal.SIGTERM, True), (signal.SIGUSR1, False)])
def test_a_signal_ends_the_process_with_success(number: int, is_busy: bool, chain: Path, tmp_path: Path) -> None:
    """Also while it speaks, and when it is told twice."""
    line = [
        "-m",
        "slmkit",
        *words(chain, "--slots", "2", "--max-sec", "60", "--name", "tiny", "--alias", "tts-1", "tts-1-hd"),
    ]
    with (tmp_path / "log").open("w+") as log_file:
        process = Process(line, stdout=PIPE, stderr=log_file)
    try:
        assert process.stdout is not None
        started = STARTED.fullmatch(process.stdout.readline())
        assert started, (tmp_path / "log").read_text()
        process.stdout.close()  # as `| head -1` does; the server goes on
        client = Client(int(started[1]))
        assert [client.speech(model=name).status_code for name in ("tiny", "tts-1", "tts-1-hd")] == [200] * 3
        other = client.begin(stream=True) if is_busy else socket.create_connection(("127.0.0.1", client.port))
        assert not is_busy or other.recv(12) == b"HTTP/1.1 200"
        began = time.monotonic()
        process.send_signal(number)
        while " stopping\n" not in (tmp_path / "log").read_text():
            assert time.monotonic() - began < GONE_SEC
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(GONE_SEC + BUSY_SEC) == 0, (tmp_path / "log").read_text()
        print(f"gone after {time.monotonic() - began:.1f} s")
        assert not read_all(other).endswith(b"0\r\n\r\n")
    finally:
        process.kill()
    log_text = (tmp_path / "log").read_text()
    assert "Traceback" not in log_text
    assert "models tiny, tts-1, tts-1-hd; sounds are wav where a request names no format" in log_text


def test_what_can_be_refused_without_torch_is(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(("slmkit.serve", "slmkit.infer"))]:
        parent, _, name = module.rpartition(".")
        if hasattr(sys.modules.get(parent), name):  # importing again sets it anew; put back afterwards
            monkeypatch.setattr(sys.modules[parent], name, getattr(sys.modules[parent], name))
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    (tmp_path / "none").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        bad = {
            ("--voices", str(tmp_path / "none")): "the folder holds no voices",
            ("--voices", str(tmp_path / "missing.wav")): "no such voice",
            ("--host", "1.2.3.4"): "cannot listen at 1.2.3.4, port 0",
            ("--host", "a..b"): "cannot listen at a..b, port 0",
            ("--port", port): f"cannot listen at 127.0.0.1, port {port}",
        }
        for more, message in bad.items():
            assert main(words(chain, *more)) == 2
            assert message in capsys.readouterr().err
    assert main(["serve", str(tmp_path), *words(chain)[2:]]) == 2
    assert f"{tmp_path} holds no model" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["serve", "--help"])
    with pytest.raises(ImportError, match="torch"):  # so much for the test itself
        main(words(chain))


def test_packages_that_are_missing_are_named(
    chain: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "PACKAGES", ("uvicorn", "no_such_package"))
    assert main(words(chain)) == 2
    said = capsys.readouterr().err
    assert "the server needs no_such_package" in said
    assert "pip install 'slmkit[serve]'" in said


def test_what_a_user_can_mend_is_named(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "set_up", lambda: None)  # it would stay for the tests after this one
    np.save(tmp_path / "other.npy", np.zeros(3, np.float32))
    bad = {
        ("--voices", str(tmp_path / "other.npy")): "the voice other is not of this codec",
        ("--max-chars", "500000"): "max_chars is out of range",
        ("--max-sec", "nan"): "max_sec is out of range",
        ("--max-sec", "1e308"): "max_sec is out of range",
        ("--alias", ""): "a name of the model is empty",
    }
    for more, message in bad.items():
        assert main(words(chain, *more)) == 2
        assert message in capsys.readouterr().err


def test_the_formats_of_the_flag_are_those_that_are_served(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["serve", "model", "--format", "ogg"])
    assert f"expected one of {', '.join(FORMATS)}" in capsys.readouterr().err


@pytest.mark.parametrize("more", [("--port", "-1"), ("--port", "65536"), ("--slots", "0"), ("--max-waiting", "x")])
def test_what_is_no_number_is_refused_at_once(
    more: tuple[str, str], chain: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words(chain, *more))
    assert f"argument {more[0]}: invalid" in capsys.readouterr().err
