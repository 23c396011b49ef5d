"""The process of the `slmkit` command, which is `python -m slmkit` too."""

import gc
import sys
from typing import NoReturn

from slmkit.cli.main import main
from slmkit.garbage import rare_collections


def command() -> NoReturn:
    """Run the command line of this process, and end it."""
    try:
        with rare_collections():
            code = main()
    finally:
        gc.freeze()  # else the interpreter would look for garbage in all that it is about to give up
    sys.exit(code)


if __name__ == "__main__":
    command()
