"""A disk that fills up: finished shards stay, and the job goes on when there is room."""

import resource
import subprocess
from pathlib import Path

import pytest
from tiny_codec import TinyCodec, make_config
from tokenization.hostile import add, noise, run

from slmkit.errors import UserError
from slmkit.tokenization.job import tokenize


def make_growing_corpus(root):
    """Shards of 2 that grow: 3 small ones, then one of several hundred KiB."""
    for i in range(8):
        add(root / f"{i}.wav", noise(0.5, i), text="x" * (300_000 if i >= 6 else 10))
    return root


def fill_up(source, out):
    config = make_config(source, out, shard_samples=2)
    with pytest.raises(UserError, match=r"cannot write .*hostile-000003\.tar: (No space left|File too large)"):
        tokenize(TinyCodec(), config)
    assert sorted(path.name for path in Path(out).iterdir()) == [
        *(f"hostile-{shard:06d}{suffix}" for shard in range(3) for suffix in (".index.json", ".tar")),
        "job.json",
        "plan",
        "tasks",
    ]


def test_files_may_not_grow_but_finished_shards_stay_and_the_job_goes_on(tmp_path):
    source, out = make_growing_corpus(tmp_path / "source"), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        fill_up(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run(source, out, shard_samples=2) == run(source, tmp_path / "whole", shard_samples=2)


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_keeps_finished_shards_and_the_job_goes_on(tmp_path, small_disk):
    source, out = make_growing_corpus(tmp_path / "source"), small_disk / "out"
    fill_up(source, out)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert run(source, out, shard_samples=2) == run(source, tmp_path / "whole", shard_samples=2)
