"""The gateway's log: one line an event, whatever is in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from s2cs.logs import about, configure
from scistream.machine import Owner, Request, Waits, open_session
from scistream.vocabulary import Role, Uid


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


def lines(form: str, *, verbose: bool = False) -> list[str]:
    stream = io.StringIO()
    configure(form, verbose, stream)  # type: ignore[arg-type]
    log = logging.getLogger("s2cs.test")
    log.info("session %s: %s", "u-1", "ACTIVE\nnot a line of its own", extra={"session": "u-1", "owner": 'a"b'})
    log.debug("detail")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it failed")
    return stream.getvalue().splitlines()


def test_json_has_one_object_a_line_with_the_fields_of_the_event() -> None:
    first, second = map(json.loads, lines("json"))
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "s2cs.test",
        "message": "session u-1: ACTIVE\nnot a line of its own",
        "session": "u-1",
        "owner": 'a"b',
    }
    assert second["level"] == "ERROR"
    assert "ValueError: two\nlines" in second["exception"]


def test_text_escapes_what_would_make_a_second_line() -> None:
    first, second, *traceback = lines("text")
    assert first.endswith("INFO s2cs.test: session u-1: ACTIVE\\nnot a line of its own")
    assert second.endswith("ERROR s2cs.test: it failed")
    assert traceback[-2:] == ["ValueError: two", "lines"]


def test_auto_is_json_where_nobody_looks_and_text_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, opening in ((io.StringIO(), "{"), (Terminal(), "2")):
        configure("auto", False, stream)
        logging.getLogger("s2cs.test").info("here")
        assert stream.getvalue().startswith(opening)


def test_verbose_tells_details() -> None:
    assert sum("detail" in line for line in lines("json", verbose=True)) == 1
    assert sum("detail" in line for line in lines("json")) == 0


def test_an_event_about_a_session_names_it_and_its_owner() -> None:
    request = Request(uid=Uid("scan-7"), role=Role.PROD, num_conn=1)
    session = open_session("id-1", Owner("local:1", "alice"), request, 0.0, 60, Waits(10, 10))
    assert about(session, state="ACTIVE") == {"session": "scan-7", "role": "PROD", "owner": "alice", "state": "ACTIVE"}
