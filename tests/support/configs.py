"""Plans for configuration files of the proxies, and the files read as the proxies do: directives, lists of words."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from s2cs.s2ds.backends.base import Leg, Plan
from s2cs.s2ds.render import Word
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.x509 import peer_name

Directives = list[list[str]]

# Words, quotes, and what ends a word, as each program's own parser has them.
_NGINX = re.compile(
    r"""\s+ | \#[^\n]*
    | (?P<mark>[;{}])
    | "(?P<double>(?:\\.|[^"\\])*)"
    | '(?P<single>(?:\\.|[^'\\])*)'
    | (?P<word>(?:\\.|\$\{[^}]*\}|[^\s;{}"'\\])(?:\\.|\$\{[^}]*\}|[^\s;{\\])*)""",
    re.VERBOSE | re.DOTALL,
)
_HAPROXY = re.compile(
    r"""(?P<blank>[ \t]+)
    | (?P<comment>\#.*)
    | \\(?P<escaped>.)
    | "(?P<double>(?:\\.|[^"\\])*)"
    | '(?P<single>[^']*)'
    | (?P<plain>[^\s\\"'#]+)""",
    re.VERBOSE | re.DOTALL,
)


def plan(
    uid: Uid, role: Role, legs: list[tuple[Endpoint, Endpoint]], directory: Path = Path("/d"), psk: bool = False
) -> Plan:
    """Plan a tunnel with two workers, from pairs of listener and target."""
    return Plan(
        uid=uid,
        role=role,
        legs=tuple(
            Leg(3 + i, 3 + len(legs) + i, 1 + i % 2, *leg, Word(f"{i}-0a1b.{peer_name(uid, Role.PROD)}"))
            for i, leg in enumerate(legs)
        ),
        peer=Word(peer_name(uid, role.peer)),
        suites=Word("TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"),
        buffer_bytes=65536,
        rate=0,
        workers=2,
        streams=100,
        places=200,
        directory=directory,
        generation=1,
        psk=psk,
    )


def nginx(text: str) -> Directives:
    """Read an nginx.conf; a block's directives are followed by one that is a closing brace."""
    found: Directives = []
    words: list[str] = []
    at = depth = 0
    while at < len(text):
        token = _NGINX.match(text, at)
        assert token, f"nginx would not read {text[at : at + 40]!r}"
        at = token.end()
        mark = token["mark"]
        if mark is None:
            words += [token[kind] for kind in ("double", "single", "word") if token[kind] is not None]
            continue
        if mark != "}":
            found.append([*words, mark])
            depth += mark == "{"
        else:
            assert words == []
            found.append(["}"])
            depth -= 1
        words = []
    assert (words, depth) == ([], 0)
    return found


def haproxy(text: str) -> Directives:
    """Read a haproxy.cfg: a directive a line; quoted pieces and bare ones that touch are one word."""
    found: Directives = []
    for line in text.split("\n"):
        words: list[str] = []
        at, joined = 0, False
        while at < len(line):
            token = _HAPROXY.match(line, at)
            assert token, f"HAProxy would not read {line[at:]!r}"
            at = token.end()
            if token["comment"] is not None:
                break
            if token["blank"] is not None:
                joined = False
                continue
            piece = next(token[k] for k in ("escaped", "double", "single", "plain") if token[k] is not None)
            assert token["double"] is None or "$" not in piece  # HAProxy would put the environment in there
            if joined:
                words[-1] += piece
            else:
                words.append(piece)
            joined = True
        if words:
            found.append(words)
    return found


def stunnel(text: str) -> Directives:
    """Read a stunnel.conf: `[section]`, or `option = value` to the line's end."""
    found: Directives = []
    for line in (line.strip(" \t\r\f\v") for line in text.split("\n")):
        if not line or line[0] in ";#":
            continue
        if section := re.fullmatch(r"\[(.*)\]", line):
            found.append(["[]", section[1]])
            continue
        name, equals, value = line.partition("=")
        assert equals, f"stunnel would not read {line!r}"
        found.append([name.strip(), value.strip()])
    return found


PARSERS: Mapping[str, Callable[[str], Directives]] = {"nginx": nginx, "haproxy": haproxy, "stunnel": stunnel}


def replaced(directives: Directives, values: Mapping[str, str]) -> Directives:
    """Put other values in the place of those that a file was made with, where they stand whole."""
    pattern = re.compile("|".join(rf"(?<![0-9A-Za-z]){re.escape(old)}(?![0-9A-Za-z])" for old in values))
    return [[pattern.sub(lambda match: values[match[0]], word) for word in words] for words in directives]
