"""Reading published files without running them."""

import argparse
import collections
import contextlib
import os
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from slmkit.codec.added import Source, read_weights
from slmkit.errors import UserError

WEIGHTS = {"a": torch.arange(3.0)}


class Settings(dict):
    """Of a trainer."""


class Harmful:
    """What runs a command when it is read as a pickle."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize(
    "foreign",
    [
        argparse.Namespace(lr=1e-4),
        PurePosixPath("/runs"),
        Settings(lr=1),
        collections.defaultdict(list, a=[1]),
        np.float64(3),
        np.arange(3),
    ],
)
def test_objects_of_a_trainer_are_left_out(tmp_path, foreign):
    torch.save({"state_dict": WEIGHTS, "trainer": foreign}, tmp_path / "a.ckpt")
    read = read_weights(tmp_path / "a.ckpt")
    assert torch.equal(read["state_dict"]["a"], WEIGHTS["a"])
    assert type(read["trainer"]) is not type(foreign)


def test_nothing_of_a_checkpoint_is_run(tmp_path):
    torch.save({"state_dict": WEIGHTS, "trainer": Harmful(tmp_path / "mark")}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"cannot read .*a\.ckpt: it holds more than weights and plain values"):
        read_weights(tmp_path / "a.ckpt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04" + bytes(100)])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_a_file_that_is_none(tmp_path, content, suffix):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(UserError, match="cannot read"):
        read_weights(tmp_path / f"a{suffix}")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_torch_files_are_read_or_refused(tmp_path):
    torch.save(WEIGHTS, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pt").read_bytes()
    damaged = [whole[:size] for size in range(0, len(whole), 9)]
    damaged += [whole[:at] + b"~" + whole[at + 1 :] for at in range(0, len(whole), 5)]
    for content in damaged:
        (tmp_path / "a.pt").write_bytes(content)
        with contextlib.suppress(UserError):
            read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# A codec\n", "mit"),
        ("---\ntags: [a]\n---\n", ""),
        ("---\nlicense: [mit\n---\n", ""),
        ("---\nlicense: 3\n---\n", ""),
        ("# no card\n---\n", ""),
        ("---\n", ""),
        pytest.param("---\nlicense: mit\n---\n" + "x" * 2**20, "", id="large"),
    ],
)
def test_licence_of_the_card(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert Source(tmp_path, None).licence == licence


def test_without_a_card_the_licence_is_not_known(tmp_path):
    assert Source(tmp_path, None).licence == ""
