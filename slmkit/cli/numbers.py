"""Types of numbers for arguments; argparse names the argument and its text where one is refused.

Example:
    parser.add_argument("--tasks", type=positive)
"""


def positive(text: str) -> int:
    """A whole number from 1. Raises ValueError for others."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def natural(text: str) -> int:
    """A whole number from 0. Raises ValueError for others."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number
