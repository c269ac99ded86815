"""Configuration files from templates, printed from typed values only.

A value reaches a configuration file only when its type says that nothing in it can end a word or start
a directive. A plain string cannot be printed at all: not even by mistake in a template.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from jinja2 import BaseLoader, Environment, StrictUndefined, TemplateNotFound

from scistream.vocabulary import Endpoint, Role, Uid

_WORD = re.compile(r"[A-Za-z0-9._:=,-]+")
_PATH = re.compile(r"""[^"'\\{}$;#]+""")


class Word(str):
    """Letters, digits and `._:=,-`: one word to every proxy.

    Raises:
        ValueError: the text has other characters, or none.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _WORD.fullmatch(text):
            raise ValueError(f"{text!r} is not one word of a configuration file")
        return super().__new__(cls, text)


def printed(value: object) -> object:
    """Let a value through into a configuration file.

    Raises:
        TypeError: values of its type may hold anything.
        ValueError: a path with characters that some proxy gives a meaning.
    """
    match value:
        case bool():
            pass
        case int() | Endpoint() | IPv4Address() | IPv6Address() | Role() | Uid() | Word():
            return value
        case Path():
            if not (_PATH.fullmatch(str(value)) and str(value).isprintable()):
                raise ValueError(f"path {str(value)!r} has characters that a configuration file cannot hold")
            return value
    raise TypeError(f"a {type(value).__name__} is not printed into a configuration file")


class _Templates(BaseLoader):
    """Finds the templates inside the installed package, else beside it in the checkout."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, None]:
        package = files("s2cs")
        for place in (package / "templates", Path(str(package)).parent / "templates"):
            source = place / template
            if source.is_file():
                return source.read_text(encoding="utf-8"), str(source), None
        raise TemplateNotFound(template)


@cache
def _environment() -> Environment:
    return Environment(  # noqa: S701 - nothing here is HTML
        loader=_Templates(),
        undefined=StrictUndefined,
        finalize=printed,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def render(template: str, **values: object) -> str:
    """Fill in a template.

    Args:
        template: its file name in `templates/`.
        values: what it may use; what it prints has to be of a printable type.
    """
    return _environment().get_template(template).render(**values)
