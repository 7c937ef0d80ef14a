"""Owns English dates and their ISO 8601 form, for training and held out. Knows no model and no tokenizer."""

import datetime
import random

from app.demo.phrases import HELD_OUT_SHARE, share_of

CHARACTERS = " !\"',-./0123456789:?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

# fmt: off
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)
_WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_ORDINALS = (
    "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
    "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
    "twentieth", "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth",
    "twenty-seventh", "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first",
)

_FORMS = (
    "{day} {month} {year}", "{day} {month}, {year}", "{nth} {month} {year}", "{nth} of {month} {year}",
    "{nth} of {month}, {year}", "the {nth} of {month} {year}", "the {nth} of {month}, {year}",
    "on the {nth} of {month} {year}", "on the {nth} of {month}, {year}", "{month} {day}, {year}",
    "{month} {day} {year}", "{month} {nth}, {year}", "{month} {nth} {year}", "{month} the {nth}, {year}",
    "{month} the {nth} {year}", "on {month} {day}, {year}", "on {month} {nth}, {year}", "{day}-{month}-{year}",
    "the {nth} {month} {year}", "on {day} {month} {year}", "{year} {month} {day}", "{year}, {month} {day}",
    "{day}. {month} {year}", "the {nth} day of {month} {year}",
)
_PREFIXES = (
    "Date: ", "date: ", "translate to ISO: ", "Translate to ISO: ", "to ISO: ", "ISO: ", "convert: ", "When: ",
    "translate: ", "It was ", "It is ", "It happened ", "Today is ", "born ", "due ", "What is ",
    "translate English to ISO: ",
)
# fmt: on
_ENDS = (".", ".", "?", "!", " ", " .")


def is_held_out(date: datetime.date) -> bool:
    """Say whether a day is for evaluation only, in whatever words."""
    return share_of(f"date:{date.isoformat()}") < HELD_OUT_SHARE


def _suffixed(day: int) -> str:
    return f"{day}{'th' if 10 < day % 100 < 14 else {1: 'st', 2: 'nd', 3: 'rd'}.get(day % 10, 'th')}"


def _day(rng: random.Random, held_out: bool) -> datetime.date:
    first, last = (1900, 2099) if rng.random() < 0.7 else (1000, 2999)
    low, high = datetime.date(first, 1, 1).toordinal(), datetime.date(last, 12, 31).toordinal()
    while True:
        date = datetime.date.fromordinal(rng.randint(low, high))
        if is_held_out(date) == held_out:
            return date


def write(date: datetime.date, rng: random.Random) -> str:
    """Return the date in one of the many ways to write it in English."""
    month = _MONTHS[date.month - 1]
    if rng.random() < 0.35:
        month = "Sept" if month == "September" and rng.random() < 0.3 else month[:3]
        month += "." if rng.random() < 0.2 else ""
    nth = _suffixed(date.day)
    if rng.random() < 0.45:
        nth = _ORDINALS[date.day - 1]
        nth = nth.replace("-", " ") if rng.random() < 0.3 else nth
    day = f"{date.day:02}" if rng.random() < 0.1 else str(date.day)
    text = rng.choice(_FORMS).format(day=day, nth=nth, month=month, year=f"{date.year:04}")
    if rng.random() < 0.2:
        weekday = _WEEKDAYS[date.weekday()]
        weekday = weekday[:3] if rng.random() < 0.25 else weekday
        text = weekday + rng.choice((", ", ", ", " ")) + text.removeprefix("on ")
        text = "on " + text if rng.random() < 0.15 else text
    case = rng.random()
    if case < 0.3:
        text = text.lower()
    elif case < 0.36:
        text = text.upper()
    elif case < 0.6:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.2:
        text = rng.choice(_PREFIXES) + text
    if rng.random() < 0.2:
        text += rng.choice(_ENDS)
    return text


def pair(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """Return a date in English and in ISO 8601."""
    date = _day(rng, held_out)
    return write(date, rng), date.isoformat()
