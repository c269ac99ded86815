"""Configuration files: no value can become a directive, and what is written is what was meant."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import IDLE_S, Backend, Found
from s2cs.s2ds.render import Word, printed, render
from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, Role, Uid
from tests.support.configs import plan

ADDRESSES = st.builds(Endpoint, st.ip_addresses().map(str), st.integers(1, 65535))
SPECIAL = st.text(st.sampled_from("a1-._:=, \t\r\n\0\"'\\{}[]$;#%|~*?&<>()é\u2028"), min_size=1)
PATHS = st.lists(st.one_of(SPECIAL, st.text(min_size=1)), min_size=1, max_size=3).map(lambda parts: Path("/", *parts))


def uids() -> st.SearchStrategy[Uid]:
    return st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9-]{0,62}\Z").map(Uid)


BACKEND = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
ROLE = pytest.mark.parametrize("role", Role)


@BACKEND
@ROLE
@given(uid=uids(), legs=st.lists(st.tuples(ADDRESSES, ADDRESSES), min_size=1, max_size=4))
def test_values_add_no_line_and_no_word(
    backend: Backend, role: Role, uid: Uid, legs: list[tuple[Endpoint, Endpoint]]
) -> None:
    """Whatever the values are, the file has the directives of a file with harmless ones."""
    harmless = [(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2))] * len(legs)
    found = Found(Path("/p"), "1", module=Path("/m.so"))
    written = backend.configuration(plan(uid, role, legs), found)
    expected = backend.configuration(plan(Uid("u"), role, harmless), found)
    shape = [len(line.split()) for line in expected.splitlines()]
    assert [len(line.split()) for line in written.splitlines()] == shape
    for character in "{};\"'$#\\":
        assert written.count(character) == expected.count(character)


@BACKEND
@given(path=PATHS)
def test_a_path_is_refused_or_stays_one_value(backend: Backend, path: Path) -> None:
    legs = [(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2))]
    found = Found(path, "1", module=path)
    try:
        written = backend.configuration(plan(Uid("u"), Role.PROD, legs, directory=path), found)
    except ValueError:
        return
    expected = backend.configuration(plan(Uid("u"), Role.PROD, legs), Found(Path("/p"), module=Path("/d")))
    assert len(written.splitlines()) == len(expected.splitlines())
    for character in "{};\"'$#\\":
        assert written.count(character) == expected.count(character)


@given(st.one_of(st.text(), SPECIAL, st.binary(), st.floats(), st.none(), st.booleans(), st.lists(st.integers())))
def test_only_known_types_are_printed(value: object) -> None:
    with pytest.raises(TypeError):
        printed(value)


@given(st.text())
def test_a_word_is_one_word(text: str) -> None:
    try:
        word = Word(text)
    except ValueError:
        return
    assert re.fullmatch(r"[A-Za-z0-9._:=,-]+", word)


@given(st.one_of(SPECIAL, st.text()))
def test_foreign_text_becomes_no_endpoint_that_could_break_out(text: str) -> None:
    try:
        endpoint = Endpoint.parse(text)
    except InvalidArgument:
        return
    assert re.fullmatch(r"[A-Za-z0-9._:\[\]-]+", str(endpoint))


@ROLE
@pytest.mark.parametrize(("version", "pin"), [("2.4.22", "process 1/"), ("2.6.12-1", "thread "), ("3.0.5", "thread ")])
def test_each_listener_of_haproxy_has_its_thread_and_its_log(role: Role, version: str, pin: str) -> None:
    legs = [(Endpoint("10.0.0.1", n), Endpoint("10.0.0.2", n)) for n in range(1, 4)]
    written = BACKENDS["haproxy"].configuration(plan(Uid("u"), role, legs), Found(Path("/p"), version))
    assert re.findall(r"^    log (\S+) ", written, re.MULTILINE) == ["fd@6", "fd@7", "fd@8"]
    assert re.findall(rf"^    bind (fd@\d {pin}\d)\b", written, re.MULTILINE) == [
        f"fd@{fd} {pin}{thread}" for fd, thread in ((3, 1), (4, 2), (5, 1))
    ]


def test_a_template_that_names_what_is_not_there_fails() -> None:
    with pytest.raises(Exception, match="tunnel"):
        render("stunnel.conf.j2")


@BACKEND
@ROLE
def test_time_outs_are_as_long_as_the_proxies_take(backend: Backend, role: Role) -> None:
    """No stream is cut for resting: defaults are 50 s (HAProxy), 10 min (nginx), 12 h and 60 s (stunnel)."""
    assert IDLE_S * 1000 < 2**31 <= (IDLE_S + 86400) * 1000
    legs = [(Endpoint("10.0.0.1", 1), Endpoint("10.0.0.2", 2))]
    written = backend.configuration(plan(Uid("u"), role, legs), Found(Path("/p")))
    wanted = {
        "nginx": [f"proxy_timeout {IDLE_S}s;", "proxy_half_close on;", "proxy_socket_keepalive on;"],
        "haproxy": [f"timeout {name} {IDLE_S}s" for name in ("tunnel", "client-fin", "server-fin")],
        "stunnel": [f"TIMEOUTidle = {IDLE_S}", f"TIMEOUTclose = {IDLE_S}"],
    }[backend.name]
    for directive in wanted:
        assert written.count(directive) == 1
