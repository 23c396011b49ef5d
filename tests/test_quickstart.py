"""The command of the README, from recordings to a WAV file, with the real launcher and two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

ROOT = Path(__file__).resolve().parent.parent


def quickstart(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the script in this Python's environment."""
    env = {**os.environ, "VIRTUAL_ENV": sys.prefix, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "launch" / "quickstart.sh"), *words]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, timeout=900, check=False)


@pytest.mark.full
def test_it_ends_with_the_sentence_it_was_trained_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = quickstart("--out", str(out))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"in:  {out}/speech.wav" in done.stdout
    assert "tensorboard --logdir" in done.stdout
    wave, rate = soundfile.read(out / "speech.wav")
    assert rate == 16_000
    assert 1.0 < len(wave) / rate < 3.0
    metrics = json.loads((out / "scores" / "report.json").read_text())["summary"]["all"]["metrics"]
    assert metrics["success"]["mean"] == 1.0
    assert min(metrics[f"frame_agreement:{stream}"]["mean"] for stream in "abc") >= 0.99
    assert metrics["log_mel_distance_db"]["mean"] < 1.0
    again = quickstart("--out", str(out))
    assert again.returncode == 2
    assert "exists" in again.stderr


@pytest.mark.parametrize(("words", "message"), [(["--mtp", "3a"], "not 3a"), (["--fast"], "unknown option")])
def test_bad_options_are_named(words: list[str], message: str) -> None:
    done = quickstart(*words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_directory_is_the_callers(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = quickstart("--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/out exists" in done.stderr
