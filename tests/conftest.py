"""Shared by all tests: one thread per process, signals as at a terminal, places of the demo data and golden files."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
import pytest

# A shell without job control starts background jobs with SIGINT ignored, which their children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
FIRST = ("test_quickstart.py", "test_elastic.py")  # the longest files: begun late, the last of them would run alone


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in FIRST)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    return ROOT / "tests" / "golden"


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    path = ROOT.parent / "shared" / "reference" / "demo"
    if not path.is_dir():
        pytest.skip("the published demo data is not beside the project")
    return path
