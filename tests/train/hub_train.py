"""One rank of `slmkit train` that asks the hub at ENDPOINT and has its cache in HOME:

python hub_train.py ENDPOINT HOME [train options]
"""

import sys
from pathlib import Path

import pytest
from hub_server import use

from slmkit.cli.main import main

if __name__ == "__main__":
    endpoint, home, *words = sys.argv[1:]
    use(pytest.MonkeyPatch(), endpoint, Path(home))
    sys.exit(main(["train", *words]))
