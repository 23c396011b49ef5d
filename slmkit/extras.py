"""What to say where a package of the extra `eval` is not installed.

Example:
    try:
        import jiwer
    except ImportError as error:
        raise missing("word error rates", "jiwer", error) from error
"""

from slmkit.errors import UserError


def missing(what: str, package: str, error: ImportError) -> UserError:
    """For a metric (`what`, in words) whose package cannot be imported."""
    return UserError(f"{what} need the package {package}", got=error, next_step='pip install "slmkit[eval]"')
