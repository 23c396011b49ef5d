"""What all benchmarks have in common."""

import argparse
import importlib

import pytest

from slmkit.cli.bench import BENCHES

FROM_ZERO = ("--group", "--groups", "--seed", "--num-workers")


@pytest.mark.parametrize("name", BENCHES)
def test_numbers_of_which_nothing_would_be_measured_are_refused(name: str) -> None:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"slmkit.bench.{name}").add_arguments(parser)
    for action in parser._actions:
        option = action.option_strings[:1]
        if action.type is float:
            assert option in (["--temperature"], ["--shorter"])
        elif action.type is not None and option:
            with pytest.raises(ValueError, match=r"^$"):
                action.type("-1" if option[0] in FROM_ZERO else "0")  # type: ignore[operator]
