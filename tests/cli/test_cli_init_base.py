"""`slmkit init-base` from a corpus and from a text file."""

from pathlib import Path

import pytest
from synthetic import write_corpus
from transformers import AutoTokenizer

from slmkit.cli.init_base import ARCHITECTURES
from slmkit.cli.main import main
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.model.init_base import ROTARY, init_base
from slmkit.model.pretrained import read_base_config

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


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture(arch: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one lantern\nanother lantern\n")
    out = tmp_path / "out"
    assert main(["init-base", str(out), "--text", str(tmp_path / "text.txt"), "--arch", arch, *SIZES]) == 0
    config, tokenizer = read_base_config(out), TextTokenizer.load(out)
    assert config.model_type == arch
    begin = AutoTokenizer.from_pretrained(out).convert_ids_to_tokens(tokenizer.bos_id)
    assert begin == ("<|begin_of_text|>" if arch == "llama" else "<|im_start|>")
    assert (config.vocab_size, config.eos_token_id) == (tokenizer.base_size, tokenizer.eos_id)
    assert tokenizer.decode(tokenizer.encode(f"a {begin} lantern")) == f"a {begin} lantern"
    assert tokenizer.bos_id not in tokenizer.encode(f"a {begin} lantern")


def test_the_command_names_the_architectures_that_are_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(ROTARY) == ARCHITECTURES
    with pytest.raises(SystemExit):
        main(["init-base", str(tmp_path / "out"), "--text", "x", "--arch", "gpt2"])
    assert "there is no 'gpt2'; expected one of qwen2, qwen3, llama, smollm3" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown architecture of a base model"):
        init_base([], tmp_path / "out", arch="gpt2")


def test_problems_are_named_and_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\x00")
    out = str(tmp_path / "out")
    assert main(["init-base", out, "--text", str(tmp_path / "text.txt"), *SIZES]) == 2
    assert "cannot read" in capsys.readouterr().err
    assert main(["init-base", out, "--text", str(tmp_path / "absent"), *SIZES]) == 2
    assert main(["init-base", out, "--corpus", str(tmp_path / "absent"), *SIZES]) == 2
    assert not Path(out).exists()
