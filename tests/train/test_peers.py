"""A failure anywhere ends every process, with one message."""

import time
from pathlib import Path

import pytest
from train.ranks import finish_ranks, start_ranks

from slmkit.errors import UserError
from slmkit.train.peers import together
from slmkit.world import World

SCRIPT = """
import sys, time
from slmkit.cli.main import UserError
from slmkit.train.peers import together
from slmkit.world import World

case, world = sys.argv[1], World.from_env()
try:
    with together(world):
        if case == "all":
            raise UserError("nobody can go on")
        if case == "one" and world.rank == 1:
            raise UserError("rank one cannot go on")
        if case == "crash" and world.rank == 1:
            raise RuntimeError("a bug")
        if case == "killed" and world.rank == 0:
            import os
            os.kill(os.getpid(), 9)
        if case != "none":
            time.sleep(100)
    print("done")
except UserError as error:
    print(f"user error: {error}")
    sys.exit(2)
"""


@pytest.mark.parametrize(
    ("case", "codes", "messages"),
    [
        ("none", [0, 0], ["done"] * 2),
        ("all", [2, 2], ["user error: nobody can go on"]),
        ("one", [2, 2], ["user error: rank one cannot go on"]),
        ("crash", [1, 1], []),
        ("killed", [-9, 1], []),
    ],
)
def test_all_end_together(tmp_path: Path, case: str, codes: list[int], messages: list[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    start = time.monotonic()
    done = finish_ranks(start_ranks(2, [str(script), case]))
    assert [code for code, _, _ in done] == codes, done
    assert not any("TCPStore" in errors for _, _, errors in done if case != "killed")
    assert [line for _, output, _ in done for line in output.splitlines()] == messages
    assert time.monotonic() - start < 60


def test_alone_it_does_nothing() -> None:
    with pytest.raises(UserError, match="mine"), together(World()):
        raise UserError("mine")


def test_a_world_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="the 2 processes cannot meet"), together(World(rank=0, size=2)):
        pass
