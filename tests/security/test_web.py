"""Attacks on the gateway's page: without credentials, with somebody else's, and through the browser of who has some."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from s2cs.web.guard import MOST_BODY
from tests.support.page import Site, site
from tests.support.siege import Siege

STATIC = Path(__file__).parents[2] / "s2cs" / "web" / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


@pytest.fixture
def admin(besieged: Siege) -> Iterator[Site]:
    with site(besieged.page, besieged.aps.token) as found:
        yield found


def raw(url: str, request: bytes, wait_s: float = 10) -> bytes:
    """Send bytes, and give what comes back until the other side has had enough."""
    place = urlsplit(url)
    got = b""
    with socket.create_connection((str(place.hostname), place.port or 0), wait_s) as connection, suppress(OSError):
        connection.sendall(request)
        while more := connection.recv(65536):
            got += more
    return got


def test_every_answer_forbids_everything_but_the_gateways_own(besieged: Siege, admin: Site) -> None:
    paths = ["/", "/page.js", "/page.css", "/icon.svg", "/nothing", "/api/overview", "/api/sessions/x", "/api/login"]
    for path in [*paths, "/?x=1", "/../../../etc/passwd", "/static/page.py", "/index.html"]:
        answer = admin.get(path)
        assert answer.headers["content-security-policy"] == POLICY, path
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in answer.headers
        assert "server" not in answer.headers
    assert admin.get("/index.html").status_code == admin.get("/page.py").status_code == 404
    page = admin.get("/").text
    assert re.findall(r"<script[^>]*>", page) == ['<script type="module" src="/page.js">']
    assert not re.search(r"<style|\son\w+=|style=|javascript:|https?:", page)
    for file in STATIC.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage", file.read_text()
        )


def test_the_cookie_says_nothing_and_ends_with_the_log_in(besieged: Siege) -> None:
    with site(besieged.page) as page:
        answer = page.login(besieged.alice[0])
        (cookie,) = answer.headers.get_list("set-cookie")
        name, value = re.match(r"(scistream-\S+?)=([\w-]{43}); ", cookie).groups()  # type: ignore[union-attr]
        assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
        assert besieged.alice[0] not in cookie + answer.text
        assert page.get("/api/overview").status_code == 200
        assert page.post("/api/logout").status_code == 200
        made_up = ["", value, value[::-1], value.lower(), besieged.alice[0], "x" * 4000, "../../token", "\x7f"]
        for each in made_up:
            answer = httpx.get(f"{besieged.page}/api/overview", headers={"Cookie": f"{name}={each}"})
            assert answer.status_code == 401, each
        for path in ("/api/overview", "/api/events", "/api/sessions/x"):
            assert page.get(path).status_code == 401
        for path in ("/api/sessions/x/kill", "/api/drain"):
            assert page.post(path, on=True).status_code == 401


def test_anothers_uid_on_every_path(besieged: Siege) -> None:
    """What mallory is told of alice's session is what he is told of one that does not exist."""
    uid = besieged.session.uid
    with site(besieged.page, besieged.mallory[0]) as page:

        def told(which: str) -> list[tuple[int, str]]:
            paths = [page.get(f"/api/sessions/{which}")]
            paths += [
                page.post(f"/api/sessions/{which}/kill", owner=owner, reason="x") for owner in ("alice", "mallory")
            ]
            return [(answer.status_code, answer.text.replace(which, "UID")) for answer in paths]

        assert told(uid) == told("0" * len(uid))
        assert [status for status, _ in told(uid)] == [404, 403, 403]
        assert page.post("/api/drain", on=True).status_code == 403
        overview = page.get("/api/overview")
        with page.http.stream("GET", "/api/events") as events:
            first = next(events.iter_lines())
        for text in (overview.text, first):
            assert uid not in text
            assert "alice" not in text
        assert {each["owner"] for each in overview.json()["sessions"]} <= {"mallory"}  # other tests are his, too
        assert set(overview.json()["capacity"]) == {"ports", "draining"}
    with site(besieged.page, besieged.alice[0]) as page:
        shown = page.get("/api/overview").json()["sessions"]
        assert {each["owner"] for each in shown} == {"alice"}
        assert {each["uid"] for each in shown} >= {each.uid for each in besieged.sessions.values()}


def test_the_scopes_of_a_token_hold(besieged: Siege) -> None:
    looks = besieged.aps.add_user("wall", "--admin", "--scope", "read")
    opens = besieged.aps.add_user("opener", "--scope", "admin")
    with site(besieged.page, looks) as page:
        assert page.get("/api/overview").status_code == 200
        assert page.post("/api/drain", on=True).status_code == 403
        answer = page.post(f"/api/sessions/{besieged.session.uid}/kill", owner="alice", reason="")
        assert (answer.status_code, "scope admin" in answer.text) == (403, True)
    with site(besieged.page, opens) as page:
        assert page.get("/api/overview").status_code == page.get("/api/events").status_code == 403


def test_requests_that_another_site_forges(besieged: Siege, admin: Site) -> None:
    """With the cookie of an admin: nothing is done that the page itself did not ask for."""
    own = admin.own
    forged: list[dict[str, str]] = [
        {},
        {"Origin": own["Origin"]},
        {"X-SciStream": "1"},
        {**own, "Origin": "http://evil.example"},
        {**own, "Origin": "null"},
        {**own, "Origin": own["Origin"].replace("http:", "https:")},
        {**own, "Origin": f"{own['Origin']}.evil.example"},
        {**own, "Origin": "http://127.0.0.1:1"},
        {**own, "Origin": "http://["},
        {**own, "Sec-Fetch-Site": "cross-site"},
        {**own, "Sec-Fetch-Site": "same-site"},
    ]
    for headers in forged:
        for path, body in (("/api/drain", {"on": True}), ("/api/login", {"token": besieged.alice[0]})):
            answer = admin.http.post(path, json=body, headers=headers)
            assert (answer.status_code, "set-cookie" in answer.headers) == (403, False), headers
    for method in ("GET", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "HEAD"):
        assert admin.http.request(method, "/api/drain", headers=own).status_code == 405, method
    asked = {**own, "Access-Control-Request-Method": "POST", "Origin": "http://evil.example"}
    assert admin.http.options("/api/drain", headers=asked).status_code == 403
    assert admin.get("/api/overview").json()["capacity"]["draining"] is False


def test_dns_rebinding_at_the_page(besieged: Siege, admin: Site) -> None:
    port = urlsplit(besieged.page).port
    theirs = [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "user@127.0.0.1",
        "127.0.0.1:port",
        "127.0.0.1/x",
        "",
        "[",
        "10.0.0.1",
    ]
    theirs += ["localhost.evil.example", "0.0.0.0", "2130706433", "127.1", "[::ffff:10.0.0.1]", "a" * 5000]
    for host in theirs:
        answer = admin.get("/api/overview", headers={"Host": host})
        assert answer.status_code in (400, 421), host
        assert besieged.session.uid not in answer.text
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:9", "[::1]:80", "LOCALHOST", "localhost."):
        assert admin.get("/api/overview", headers={"Host": host}).status_code == 200, host
    two = b"GET /api/overview HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    assert raw(besieged.page, two).startswith(b"HTTP/1.1 4")


def test_a_token_in_an_address_or_a_header(besieged: Siege) -> None:
    token = besieged.aps.token
    with site(besieged.page) as page:
        for path in (f"/?token={token}", f"/api/overview?access_token={token}", f"/api/events?{token}"):
            assert page.get(path).status_code == 400
        assert page.get("/api/overview", headers={"Authorization": f"Bearer {token}"}).status_code == 400
        assert page.get(f"/api/sessions/{token}").status_code in (400, 401)
    assert token not in besieged.aps.log


def test_what_is_too_big(besieged: Siege, admin: Site) -> None:
    assert admin.post("/api/login", token="x" * MOST_BODY).status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(2000):
            yield b"x" * 65536

    with suppress(httpx.HTTPError):
        answer = admin.http.post("/api/login", content=endless(), headers=admin.own)
        assert answer.status_code == 400
    lie = f"POST /api/login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {'9' * 30}\r\n\r\n".encode()
    assert b"Traceback" not in raw(besieged.page, lie)
    head = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 200_000
    assert raw(besieged.page, head)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")
    whole = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX: " + b"y" * 40_000 + b"\r\n\r\n"
    assert raw(besieged.page, whole)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431")
    assert admin.get("/", headers={"X": "y" * 16_384}).status_code in (400, 431)
    for body in (
        b"[" * 16_000,
        b"{}",
        b"null",
        b'{"token": 1}',
        b'{"token": {}}',
        b"\xff\xfe",
        b"",
        b'{"token": "\\u0000"}',
    ):
        assert admin.http.post("/api/login", content=body, headers=admin.own).status_code in (400, 401), body[:20]


def test_many_streams_of_events_and_one_that_nobody_reads(besieged: Siege, admin: Site) -> None:
    with ExitStack() as stack:
        streams = [stack.enter_context(admin.http.stream("GET", "/api/events")) for _ in range(5)]
        assert [answer.status_code for answer in streams] == [200] * 4 + [429]
        assert all(next(answer.iter_lines()).startswith("data: ") for answer in streams[:4])
    deadline = time.monotonic() + 20
    while True:  # those who have gone are not counted any more
        with admin.http.stream("GET", "/api/events") as again:
            if again.status_code == 200:
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_more_log_ins_than_one_user_gets(besieged: Siege) -> None:
    with ExitStack() as stack:
        pages = [stack.enter_context(site(besieged.page, besieged.mallory[0])) for _ in range(9)]
        assert [page.get("/api/overview").status_code for page in pages] == [401] + [200] * 8


def test_words_that_are_no_words(besieged: Siege, admin: Site) -> None:
    """Texts of users come as JSON and stay texts; what an admin writes is checked."""
    uid = besieged.session.uid
    for reason in ("a\nb", "\x1b[31m", "x" * 201, "\u202e"):
        answer = admin.post(f"/api/sessions/{uid}/kill", owner="alice", reason=reason)
        assert answer.status_code == 400, reason
    for name in ("../x", "%2e%2e%2fx", "<script>", "a%00b", "x" * 64):
        assert admin.get(f"/api/sessions/{name}").status_code in (400, 404), name
    answer = admin.post(f"/api/sessions/{uid}/kill", owner="<script>", reason="")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/json")
    told = admin.get("/api/overview")
    assert told.headers["content-type"] == "application/json"
    assert {each["uid"]: each["state"] for each in json.loads(told.text)["sessions"]}[uid] == "ACTIVE"


def test_rubbish_at_the_pages_port(besieged: Siege, admin: Site) -> None:
    rubbish: list[Any] = [
        b"\0" * 3000,
        b"\x16\x03\x01\x02\x00" + b"x" * 600,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
    ]
    own = "".join(f"{name}: {value}\r\n" for name, value in admin.own.items())
    half = f"POST /api/login HTTP/1.1\r\nHost: {urlsplit(besieged.page).netloc}\r\n{own}Content-Length: 100\r\n\r\n{{"
    rubbish.append(
        half.encode()
    )  # whoever goes in the middle leaves no trace in the log, which is looked at at the end
    for each in rubbish:
        with socket.create_connection(("127.0.0.1", urlsplit(besieged.page).port or 0), 10) as connection:
            connection.sendall(each)
    assert admin.get("/api/overview").status_code == 200
