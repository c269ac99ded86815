"""The settings' file: one TOML file, read and validated whole, with environment variables over it.

`SCISTREAM_NETWORK__LAN=10.0.0.1` sets `lan` of `[network]`. Relative paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from s2cs.settings import Settings
from s2cs.tables import Table
from scistream.errors import ScistreamError
from scistream.vocabulary import meant, shown

Kind = TypeVar("Kind", bound=Table)

SEARCHED = (Path("s2cs.toml"), Path("/etc/scistream/s2cs.toml"))


class SettingsError(ScistreamError):
    """The settings cannot be used; the message has a line for each fault."""


def load(file: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and validate the settings.

    Args:
        file: the TOML file; None looks for `s2cs.toml` here and in /etc/scistream.
        environ: where overriding variables are looked for.

    Raises:
        SettingsError: no file, not TOML, or anything in it that is not accepted.
    """
    return read(located(file), Settings, environ)


def read(file: Path, kind: type[Kind], environ: Mapping[str, str] = os.environ) -> Kind:
    """Read and validate settings of a kind.

    Raises:
        SettingsError: not TOML, or anything in it that is not accepted.
    """
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"settings {file} cannot be read: {error.strerror}; name the file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = str(error)
        if reason.startswith("Cannot declare"):
            reason += "; write each [table] once, with all its keys below it"
        raise SettingsError(f"settings {file} are not TOML: {reason}") from None
    _override(tables, environ)
    try:
        settings = kind.model_validate(tables)
    except ValidationError as error:
        faults = [f"{file}: {_sentence(fault, kind)}" for fault in error.errors()]
        raise SettingsError("\n".join(dict.fromkeys(faults))) from None
    found: Kind = _absolute(settings, file.resolve().parent)
    return found


def located(file: Path | None) -> Path:
    """Say which file the settings are.

    Raises:
        SettingsError: none was named, and there is none where they are looked for.
    """
    file = file or next((path for path in SEARCHED if path.exists()), None)
    if file is None:
        raise SettingsError("there is no s2cs.toml here or in /etc/scistream; make one with: s2cs init DIR")
    return file


def fingerprint(file: Path | None, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Tell which settings are in force, not what they are: file, its SHA-256, and the variables that override it.

    Raises:
        SettingsError: the file is gone.
    """
    file = located(file)
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise SettingsError(f"settings {file} cannot be read: {error.strerror}; name the file with --config") from None
    return {"settings": str(file.resolve()), "sha256": digest, "overridden": sorted(filter(_overrides, environ))}


def _overrides(name: str) -> bool:
    return name.startswith("SCISTREAM_") and "__" in name


def _override(tables: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, text in environ.items():
        if not _overrides(name):
            continue
        table, _, key = name.removeprefix("SCISTREAM_").lower().partition("__")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text  # a bare word, as shells have them
        section = tables.setdefault(table, {})
        if isinstance(section, dict):
            section[key] = value


def _sentence(fault: Any, kind: type[Table]) -> str:
    parts = [part for part in fault["loc"] if not str(part).startswith("function-")]
    place, table, keys = _place(parts, kind)
    if fault["type"] == "extra_forbidden":
        what = f"{place} {keys[0]}: unknown key" if place else f"[{keys[0]}]: unknown table"
        what += meant(str(keys[0]), table.model_fields)
        return f"{what}; accepted are {', '.join(table.model_fields)}"
    message = fault["msg"].removeprefix("Value error, ")
    found = "" if isinstance(fault["input"], dict) else f"found {shown(fault['input'])}; "
    return f"{' '.join([place or '[settings]', *map(str, keys[:1])])}: {found}{message[0].lower()}{message[1:]}"


def _place(parts: list[int | str], table: type[BaseModel]) -> tuple[str, type[BaseModel], list[int | str]]:
    """Find the table that a fault is in: its name as it is in the file, its type, and what of the place is left."""
    names: list[str] = []
    rest, number = list(parts), ""
    kind: object = None
    while rest and (found := _inner(table, str(rest[0]))):
        table, kind = found
        names.append(str(rest.pop(0)))
        if kind is tuple and rest:
            number = f" {int(rest.pop(0)) + 1}"
        elif kind is dict and rest:
            names.append(str(rest.pop(0)))
    name = ".".join(names)
    return (f"[[{name}]]{number}" if kind is tuple else f"[{name}]") if names else "", table, rest


def _inner(table: type[BaseModel], key: str) -> tuple[type[BaseModel], object] | None:
    """Give the type of the table, the tables in order or the tables by name that a key of a table stands for."""
    field = table.model_fields.get(key)
    if field is None:
        return None
    arguments = [each for each in get_args(field.annotation) if isinstance(each, type) and issubclass(each, Table)]
    if arguments:
        return arguments[0], get_origin(field.annotation)
    if isinstance(field.annotation, type) and issubclass(field.annotation, Table):
        return field.annotation, None
    return None


def _absolute(value: Any, base: Path) -> Any:
    """Give the same with paths relative to a directory made absolute, in whichever table they are."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, Table):
        return value.model_copy(update={key: _absolute(each, base) for key, each in value})
    if isinstance(value, dict):
        return {key: _absolute(each, base) for key, each in value.items()}
    return tuple(_absolute(each, base) for each in value) if type(value) is tuple else value
