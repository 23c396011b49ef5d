"""The garbage collector beside objects that stay, and in the process of a command."""

import gc
import subprocess
import sys

import pytest

from slmkit.garbage import OBJECTS_PER_COLLECTION, rare_collections, settle

# A command that says how often cycles are looked for, and at its end whether what is there is walked through.
COMMAND = """
import atexit, gc, slmkit.__main__
from slmkit.garbage import settle
def main():
    atexit.register(lambda: print(gc.get_freeze_count() > 0))
    print(gc.get_threshold()[0])
    settle()
    print(gc.get_threshold()[0])
    {end}
slmkit.__main__.main = main
slmkit.__main__.command()
"""


def test_collections_are_rare_inside_alone() -> None:
    before = gc.get_threshold()
    with pytest.raises(KeyError), rare_collections():
        assert gc.get_threshold() == (OBJECTS_PER_COLLECTION, *before[1:])
        raise KeyError
    assert gc.get_threshold() == before


@pytest.mark.parametrize(("end", "code"), [("return 3", 3), ("raise SystemExit(2)", 2)])
def test_a_command_looks_for_cycles_in_new_objects_alone(end: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", COMMAND.format(end=end)], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    usual = subprocess.run(
        [sys.executable, "-c", "import gc; print(gc.get_threshold()[0])"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(OBJECTS_PER_COLLECTION), usual.stdout.strip(), "True"]


def test_what_is_there_before_a_loop_is_not_walked_through() -> None:
    mine = [object() for _ in range(3)]
    settle()
    assert not any(known is mine for known in gc.get_objects())
