"""Numbers, dates and abbreviations as the words that one reads: for models that were trained on words alone.

Numbers, money, times, units and dates of digits are `voxnorm`'s (extra `text`); it leaves alone what can be read in
more than one way, as 1/2. Abbreviations, dates with the name of a month, and years are here.

Example:
    spoken_form("Dr. Smith paid $3.50 on May 3, 2020.")
    # "Doctor Smith paid three dollars and fifty cents on May third, twenty twenty."
"""

import importlib.util
import re
from collections.abc import Iterable

from slmkit.errors import UserError

LANGUAGES = ("english",)
PACKAGE = "voxnorm"
# A point belongs to each. Some are kept at the end of a sentence, where the point ends both.
TITLES = {
    **{"Dr": "Doctor", "Mr": "Mister", "Mrs": "Misses", "Ms": "Miz", "Prof": "Professor", "Rev": "Reverend"},
    **{"Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant", "Sgt": "Sergeant", "Gov": "Governor"},
    **{"Sen": "Senator", "Rep": "Representative", "Hon": "Honorable", "St": "Saint", "Mt": "Mount", "Ft": "Fort"},
}
ABBREVIATIONS = {
    **{
        "e.g": "for example",
        "i.e": "that is",
        "vs": "versus",
        "a.m": "a m",
        "p.m": "p m",
        "approx": "approximately",
        "dept": "department",
    },
    **{"Jr": "Junior", "Sr": "Senior", "etc": "et cetera", "Inc": "Incorporated", "Ltd": "Limited", "Co": "Company"},
    **{"Corp": "Corporation", "Ave": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "St": "Street"},
}
NUMBERED = {"No": "number", "no": "number", "vol": "volume", "Vol": "Volume", "Fig": "Figure", "fig": "figure"}
NUMBERED |= {"p": "page", "pp": "pages", "ch": "chapter", "Ch": "Chapter", "sec": "section", "Sec": "Section"}
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
SHORT_MONTHS = {month[:3]: month for month in MONTHS} | {"Sept": "September"}


def _any_of(words: Iterable[str]) -> str:
    return "|".join(map(re.escape, words))


# St. behind a name is a street, before one a saint.
_TITLE = re.compile(rf"(\b[A-Z][a-z]+ St\.)|\b({_any_of(TITLES)})\.(?= *[A-Z]| and\b)")
_NUMBERED = re.compile(rf"\b({_any_of(NUMBERED)})\.(?= *\d)")
_SHORT_MONTH = re.compile(
    rf"\b({_any_of(SHORT_MONTHS)})\.(?= *\d)|(?<=\d )({_any_of(SHORT_MONTHS)})\b\.?(?=,? \d{{4}}\b)"
)
_ABBREVIATION = re.compile(rf"\b({_any_of(ABBREVIATIONS)})\.")
_ENDS = re.compile(r"""\s+["'“‘(]?[A-Z]|["'”’)]*\s*$""")  # noqa: RUF001
_DAY_MONTH = re.compile(rf"\b(?:the )?(\d{{1,2}})(?:st|nd|rd|th)? ({_any_of(MONTHS)})\b")
_MONTH_DAY = re.compile(rf"\b({_any_of(MONTHS)}) (\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)")
_YEAR_OF_DATE = re.compile(rf"\b((?:{_any_of(MONTHS)})(?: [a-z-]+)?,? )(1\d\d\d|20\d\d)\b(?![,.]?\d)")
_YEAR_ALONE = re.compile(r"\b([Ii]n|[Ss]ince) (1[1-9]\d\d|20\d\d)(?=[,;:!?)]|\.(?!\d)|$)")
_DECADE = re.compile(r"\b((?:1[1-9]|20)\d0)s\b")


def check_spoken_form(language: str) -> None:
    """Raise UserError for a language that is not known, or where the extra is missing. "" asks for nothing."""
    if not language:
        return
    if language not in LANGUAGES:
        raise UserError("no such language to write numbers in", got=language, expected=f"one of {', '.join(LANGUAGES)}")
    if importlib.util.find_spec(PACKAGE) is None:
        raise UserError("numbers as words need the package voxnorm", next_step="pip install 'slmkit[text]'")


def spoken_form(text: str, language: str = "english") -> str:
    """The text as it is read. Raises UserError as `check_spoken_form`."""
    check_spoken_form(language)
    if not language:
        return text
    from num2words import num2words
    from voxnorm import normalize

    def year(digits: str) -> str:
        return num2words(int(digits), to="year")

    def ordinal(digits: str) -> str:
        return num2words(int(digits), to="ordinal")

    def decade(found: re.Match[str]) -> str:
        words = year(found[1])
        return words[:-1] + "ies" if words.endswith("y") else words + "s"

    def in_full(found: re.Match[str]) -> str:
        ends = _ENDS.match(text, found.end()) and found[1] not in ("e.g", "i.e", "vs")
        return ABBREVIATIONS[found[1]] + ("." if ends else "")

    text = _TITLE.sub(lambda found: found[1] or TITLES[found[2]], text)
    text = _NUMBERED.sub(lambda found: NUMBERED[found[1]], text)
    text = _SHORT_MONTH.sub(lambda found: SHORT_MONTHS[found[1] or found[2]], text)
    text = _ABBREVIATION.sub(in_full, text)
    text = _DAY_MONTH.sub(lambda found: f"the {ordinal(found[1])} of {found[2]}", text)
    text = _MONTH_DAY.sub(lambda found: f"{found[1]} {ordinal(found[2])}", text)
    text = _YEAR_OF_DATE.sub(lambda found: found[1] + year(found[2]), text)
    text = _YEAR_ALONE.sub(lambda found: f"{found[1]} {year(found[2])}", text)
    text = _DECADE.sub(decade, text)
    return normalize(text, lang="en")
