"""Shared by all tests: one thread per process, signals as at a terminal, places of the demo data and golden files."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import hypothesis
import pytest

from slmkit.garbage import OBJECTS_PER_COLLECTION, settle

gc.set_threshold(OBJECTS_PER_COLLECTION)
# A shell without job control starts background jobs with SIGINT ignored, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("quick", max_examples=15, deadline=None)
hypothesis.settings.register_profile("all", max_examples=100, deadline=None)
hypothesis.settings.load_profile("quick")

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: begun late, the last of them would run alone."""
    items.sort(key=lambda item: (item.path.name != "test_quickstart.py", item.path.parent.name != "train"))


def pytest_collection_finish() -> None:
    """What is imported and collected stays."""
    settle()


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    path = ROOT.parent / "shared" / "reference" / "demo"
    if not path.is_dir():
        pytest.skip("the published demo data is not beside the project")
    return path
