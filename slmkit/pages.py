"""Pages from the templates in `slmkit/templates/`: HTML, Markdown and LaTeX. The only file that knows Jinja2.

A page is one HTML file without scripts, beside its WAV and PNG files; it needs no network, fits a phone and follows the
dark preference of the browser. Every value is escaped. Text of strangers also goes through the filter `shorten` and the
macro `text` of macros.html: it is shortened, freed of control characters and of those that reorder text, and isolated,
so that right-to-left text does not reorder what stands around it. The head of every page forbids scripts, should one
get in all the same. Templates of Markdown and LaTeX put each text through the filter `markdown` or `latex`.

Invariant: equal values give equal bytes.

Example:
    page = render("compare.html", title="Models compared", facts=[("task", "reading sentences")], ...)
"""

import functools
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from slmkit.texts import excerpt, visible

MARKDOWN_SPECIAL = re.compile(r"([\\`*_\[\]|#])")
LATEX_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
TEMPLATE_FOLDER = Path(__file__).resolve().parent / "templates"


def render(template: str, /, **values: Any) -> str:
    """The page that a template makes of `values`. Raises jinja2.UndefinedError when a value is missing."""
    return _jinja().get_template(template).render(**values)


def shorten(text: object, limit: int) -> str:
    """At most `limit` characters of a text, as characters that a page can hold."""
    return excerpt(text, limit)


def markdown(text: object) -> str:
    """A text as it stands in a cell of a table of Markdown."""
    return MARKDOWN_SPECIAL.sub(r"\\\1", " ".join(str(text).split())).replace("<", "&lt;")


def latex(text: object) -> str:
    """A text as LaTeX prints it."""
    return "".join(LATEX_SPECIAL.get(character, character) for character in " ".join(str(text).split()))


@functools.cache
def _jinja() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=lambda name: name is None or name.endswith((".html", ".css")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # of all that templates print
    )
    environment.filters |= {"shorten": shorten, "markdown": markdown, "latex": latex}
    return environment
