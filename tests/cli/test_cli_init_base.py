"""`slmkit init-base` from a corpus and from a text file."""

from pathlib import Path

import pytest
from synthetic import write_corpus

from slmkit.cli.main import main
from slmkit.data.text import TextTokenizer

SIZES = ["--hidden-size", "32", "--num-layers", "1", "--vocab-size", "290"]


def test_from_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus(tmp_path / "corpus", 12)
    assert main(["init-base", str(tmp_path / "out"), "--corpus", str(tmp_path / "corpus"), *SIZES]) == 0
    assert "wrote a base model" in capsys.readouterr().out
    tokenizer = TextTokenizer.load(tmp_path / "out")
    assert len(tokenizer.encode("lantern")) < len("lantern")
    assert tokenizer.base_size == 290


def test_from_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one lantern\nanother lantern\n")
    assert main(["init-base", str(tmp_path / "out"), "--text", str(tmp_path / "text.txt"), *SIZES]) == 0
    assert TextTokenizer.load(tmp_path / "out").decode([0]) != ""


def test_problems_are_named_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    out = str(tmp_path / "out")
    assert main(["init-base", out, "--text", str(tmp_path / "text.txt"), *SIZES]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["init-base", out, "--text", str(tmp_path / "absent"), *SIZES]) == 2
    assert main(["init-base", out, "--corpus", str(tmp_path / "absent"), *SIZES]) == 2
    assert not Path(out).exists()
