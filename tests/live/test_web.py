"""The page in a real browser, held against what the API says while real streams run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.gateways import Client, GatewayProcess, gateway
from tests.support.page import chromium, site, with_page
from tests.support.ports import port_block
from tests.support.sessions import Echo, Opened, echo, open_pair
from tests.support.tunnels import kill

HOSTILE = "<script>document.title='taken'</script><img src=x onerror=alert(1)>"


@dataclass
class Stage:
    """A producer's gateway with a page, a consumer's, a stream at work and one that rests."""

    aps: GatewayProcess
    alcf: GatewayProcess
    url: str
    alice: str
    busy: Opened
    idle: Opened
    browser: Any
    clients: tuple[Client, Client]
    app: Echo

    def page(self, token: str = "", **options: Any) -> Any:
        """Open the page in a browser of its own, logged in if there is a token."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        context.set_default_timeout(10_000)
        page = context.new_page()
        page.faults = []
        page.on("console", lambda message: page.faults.append(message.text) if _is_fault(message) else None)
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.goto(self.url)
        if token:
            page.fill("#token", token)
            page.keyboard.press("Enter")
            page.wait_for_selector("#rows tr")
        return page

    def told(self) -> dict[str, pb.SessionInfo]:
        """What the API says of the sessions, to an admin."""
        with self.aps.client() as client:
            return {info.uid: info for info in client.list(pb.ListRequest()).sessions}


def _is_fault(message: Any) -> bool:
    return message.type == "error" and "401" not in message.text  # which is how the page learns that it is to ask


def flow(connection: Any, stop: threading.Event) -> None:
    """Send to an echo and take what comes back, at an easy pace, until it is enough."""
    with suppress(OSError):
        while not stop.is_set():
            connection.sendall(b"x" * 50_000)
            left = 50_000
            while left:
                left -= len(connection.recv(left)) or left
            stop.wait(0.02)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("web")
    address, settings = with_page()
    with ExitStack() as stack:
        browser = stack.enter_context(chromium())
        aps = stack.enter_context(gateway(directory / "aps", "--name", "aps", **settings))
        alcf = stack.enter_context(gateway(directory / "alcf", "--name", "alcf"))
        alice = aps.add_user("alice")
        app = stack.enter_context(echo())
        producer = stack.enter_context(aps.client(alice))
        consumer = stack.enter_context(alcf.client())
        targets = [str(app.endpoint)]
        sample, note = {"sample": "A-7"}, {"note": HOSTILE}
        busy = open_pair(producer, consumer, targets, num_conn=2, uid="scan-1207", consumer="alcf", labels=sample)
        idle = open_pair(producer, consumer, targets, uid="tomography-31", consumer="alcf", labels=note)
        connection = stack.enter_context(busy.connect())
        stop = threading.Event()
        sending = threading.Thread(target=flow, args=(connection, stop))
        sending.start()
        try:
            yield Stage(aps, alcf, f"http://{address}", alice, busy, idle, browser, (producer, consumer), app)
        finally:
            stop.set()
            sending.join(10)
            assert "Traceback" not in aps.log


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def cell(page: Any, uid: str, what: str) -> str:
    return str(page.inner_text(f"tr[data-uid='{uid}'] td[data-what='{what}']"))


def in_bytes(text: str) -> float:
    """Read what the page writes, as `12.3 MB`."""
    number, unit = text.split()
    return float(number) * 1000 ** ["B", "kB", "MB", "GB"].index(unit)


def test_what_is_shown_is_what_the_api_says(stage: Stage) -> None:
    page = stage.page(stage.aps.token)
    until(lambda: page.get_attribute(f"tr[data-uid='{stage.busy.uid}'] svg.plot .line", "d").count("L") > 1)
    before = stage.told()
    page.select_option("#state", "")
    shown = {uid: cell(page, uid, "Moved") for uid in before}
    after = stage.told()
    assert page.locator("#rows tr").count() == len(after) == len(before)
    for uid, info in after.items():
        assert cell(page, uid, "State") == info.state == "ACTIVE"
        assert cell(page, uid, "Owner") == info.owner == "alice"
        assert cell(page, uid, "Streams") == f"{info.traffic.connections_open} of {info.num_conn}"
        low, high = (x.bytes_from_producer + x.bytes_from_consumer for x in (before[uid].traffic, info.traffic))
        # A frame is at most a second old, and three figures are shown.
        assert 0.8 * low - 5e6 <= in_bytes(shown[uid]) <= 1.06 * high
        proxy = page.locator(f"tr[data-proxy='{uid}'] td").all_inner_texts()
        assert proxy[:4] == [uid, f"{info.backend} {info.backend_version}", "RUNNING", str(info.restarts)]
    assert in_bytes(shown[stage.busy.uid]) > 0
    assert cell(page, stage.busy.uid, "Rate") != "0 b/s"
    assert cell(page, stage.idle.uid, "Rate") == "0 b/s"
    with stage.aps.client() as client:
        described = client.describe(pb.DescribeRequest())
    words = page.inner_text("#gauges")
    most = 99  # the ports of a test's gateway
    assert f"{most - described.free_ports} of {most}" in words
    assert (page.inner_text("#name"), page.inner_text("#user")) == ("aps", "admin (admin)")
    picture = page.get_attribute("#picture svg", "aria-label")
    assert all(f"{uid}: ACTIVE" in picture for uid in after)
    assert str(stage.app.endpoint) in page.inner_text("#picture")
    assert page.faults == []
    page.context.close()


def test_search_and_details_show_hostile_texts_as_texts(stage: Stage) -> None:
    page = stage.page(stage.alice)
    page.fill("#search", "sample a-7")
    assert page.locator("#rows tr").count() == 1
    page.fill("#search", "onerror")
    page.click("button.uid")
    details = page.inner_text(f"tr[data-more='{stage.idle.uid}']")
    assert f"note = {HOSTILE}" in details
    assert page.locator(".kill").count() == 0  # alice is no admin
    assert page.locator("main img, main script").count() == 0
    assert page.title() == "SciStream: aps"
    assert page.faults == []
    page.context.close()


def test_a_proxy_that_dies_is_seen_and_so_is_its_recovery(stage: Stage) -> None:
    page = stage.page(stage.aps.token)
    uid = stage.idle.uid
    killed = [each.pid for each in stage.aps.proxies() if uid in _files(Path(each.cwd()))]
    assert killed
    kill(*killed)
    until(lambda: page.inner_text(f"tr[data-proxy='{uid}'] td[data-what='Restarts']") == "1")
    assert stage.told()[uid].restarts == 1
    until(lambda: "RECOVERING" in page.inner_text("#events"))
    until(lambda: cell(page, uid, "State") == "ACTIVE")
    assert page.faults == []
    page.context.close()


def _files(directory: Path) -> str:
    """What is in a tunnel's directory."""
    return "".join(path.read_text(errors="replace") for path in directory.glob("*") if path.is_file())


def test_by_keyboard_alone(stage: Stage) -> None:
    """Log in, open a session's details, end it with a reason, log out: no mouse, and the focus is always seen."""
    extra = open_pair(*stage.clients, [str(stage.app.endpoint)])
    page = stage.page()
    focus = "(document.activeElement.id || document.activeElement.className)"
    until(lambda: page.evaluate(focus) == "token")
    page.keyboard.type(stage.aps.token)
    page.keyboard.press("Enter")
    page.wait_for_selector(f"tr[data-uid='{extra.uid}']")
    until(lambda: page.evaluate(focus) == "h-sessions")
    page.keyboard.press("Tab")
    assert page.evaluate(focus) == "search"
    page.keyboard.type(extra.uid)
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == extra.uid
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"tr[data-more='{extra.uid}']")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == f"Kill {extra.uid}"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("Escape")
    assert stage.told()[extra.uid].state == "ACTIVE"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open]")
    page.keyboard.type(f"the beam is off {HOSTILE}")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"tr[data-uid='{extra.uid}']", state="detached")
    assert stage.told()[extra.uid].reason == f"killed by admin at the gateway's page: the beam is off {HOSTILE}"
    until(lambda: "killed by admin" in page.inner_text("#events"))
    page.focus("#logout")
    page.keyboard.press("Enter")
    page.wait_for_selector("#login")
    assert page.context.cookies() == []
    assert page.faults == []
    page.context.close()
    extra.consumer.release(pb.Release(uid=extra.uid))


def test_a_question_asked_while_the_last_one_closes(stage: Stage) -> None:
    """A dialog's closing is told a frame later: it is not taken for the answer to the next question."""
    extra = open_pair(*stage.clients, [str(stage.app.endpoint)])
    page = stage.page(stage.aps.token)
    page.click(f"tr[data-uid='{extra.uid}'] button")
    page.click(f"tr[data-more='{extra.uid}'] .kill")
    close_and_ask = "() => { document.getElementById('ask').close(); document.querySelector('.kill').click(); }"
    page.evaluate(close_and_ask)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    page.click("#ask-yes")
    page.wait_for_selector(f"tr[data-uid='{extra.uid}']", state="detached")
    page.context.close()
    extra.consumer.release(pb.Release(uid=extra.uid))


def test_drain_and_back(stage: Stage) -> None:
    page = stage.page(stage.aps.token)
    page.click("#drain")
    page.click("#ask-yes")
    page.wait_for_selector("#ready.warn")
    with stage.aps.client() as client:
        assert "drained" in client.describe(pb.DescribeRequest()).unready
    page.click("#drain")
    page.wait_for_selector("#ready.good")
    page.context.close()


def test_screenshots(stage: Stage, tmp_path: Path) -> None:
    """Take the pictures of the docs: into a directory of the test's, or where `make screenshots` says."""
    directory = Path(os.environ.get("SCISTREAM_SCREENSHOTS", tmp_path))
    wide, phone = {"width": 1180, "height": 860}, {"width": 390, "height": 844}
    for name, options in {
        "light": {"viewport": wide},
        "dark": {"viewport": wide, "color_scheme": "dark"},
        "phone": {"viewport": phone},
    }.items():
        page = stage.page(stage.aps.token, **options)
        if name == "dark":
            page.click("button.uid >> nth=1")
            page.evaluate("document.querySelector('#h-sessions').scrollIntoView()")
        if directory != tmp_path:
            page.wait_for_timeout(20_000)  # for a plot that is worth a look
        file = directory / f"web-{name}.png"
        page.screenshot(path=file)
        assert 10_000 < file.stat().st_size < 150_000
        page.context.close()


def test_who_is_disabled_loses_the_page(stage: Stage) -> None:
    bob = stage.aps.add_user("bob", "--operator")
    page = stage.page(bob)
    command = [sys.executable, "-m", "s2cs", "user", "disable", "bob", "--config", stage.aps.config]
    subprocess.run(command, check=True, capture_output=True)
    page.wait_for_selector("#login")
    assert page.locator("#rows tr").count() == 0
    assert page.inner_text("#fault") != ""
    page.context.close()


def test_the_cookie_of_who_was_disabled_is_not_good_again(stage: Stage) -> None:
    def switch(verb: str) -> None:
        command = [sys.executable, "-m", "s2cs", "user", verb, "eve", "--config", stage.aps.config]
        subprocess.run(command, check=True, capture_output=True)

    eve = stage.aps.add_user("eve")
    with site(stage.url, eve) as page:
        assert page.get("/api/overview").status_code == 200
        switch("disable")
        until(lambda: page.get("/api/overview").status_code == 401)  # 403 as long as the page knows the cookie
        switch("enable")
        assert page.get("/api/overview").status_code == 401
        assert page.login(eve).status_code == 200


def test_on_a_phone_in_the_dark_without_motion(stage: Stage) -> None:
    page = stage.page(
        stage.aps.token, viewport={"width": 360, "height": 740}, color_scheme="dark", reduced_motion="reduce"
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", paper))) < 150
    moving = "getComputedStyle(document.querySelector('#picture path.moving')).animationName"
    page.wait_for_selector("#picture path.moving", state="attached")
    assert page.evaluate(moving) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate(moving) == "flow"
    page.context.close()


def test_credentials_that_end_take_the_page_and_its_events_with_them(stage: Stage) -> None:
    for seconds in (3, 9, 27):  # a busy machine may need longer than the first
        brief = stage.aps.add_user(f"brief-{seconds}", "--expires", f"{seconds}s")
        with site(stage.url) as page:
            if page.login(brief).status_code != 200:
                continue
            with page.http.stream("GET", "/api/events") as events:
                lines = [line for line in events.iter_lines() if line]
        if events.status_code == 200:
            break
    assert lines[0].startswith("data: {")
    assert lines[-2] == "event: over"
    assert "log in again" in lines[-1]
    with site(stage.url) as page:
        assert "expired" in page.login(brief).text


def test_guessing_at_the_page_is_slowed_and_who_is_at_work_is_not(stage: Stage) -> None:
    with site(stage.url, stage.alice) as alice, site(stage.url) as stranger, ThreadPoolExecutor(50) as pool:
        guesses = list(pool.map(lambda n: stranger.login(f"s2t_guess{n}"), range(80)))
        assert {answer.status_code for answer in guesses} == {401, 429}
        assert alice.get("/api/overview").status_code == 200
    assert all("set-cookie" not in answer.headers for answer in guesses)
    with stage.aps.client("s2t_another") as client, pytest.raises(grpc.RpcError) as refused:
        client.list(pb.ListRequest())  # what was used up at the page is used up at the control port
    assert refused.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAUTHENTICATED)


def test_what_was_done_is_on_record(stage: Stage) -> None:
    command = [sys.executable, "-m", "s2cs", "audit", "show", "--json", "--config", stage.aps.config]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    records = [json.loads(line) for line in shown.splitlines()]
    done = {(each["event"], each.get("user"), each.get("decision")) for each in records}
    wanted = {"web.login", "web.kill", "web.drain"}
    assert {(event, "admin", "allowed") for event in wanted} <= done
    assert stage.aps.token not in shown


def test_a_control_server_that_is_killed_is_told_of_and_its_streams_are_there_again(stage: Stage) -> None:
    page = stage.page(stage.aps.token)
    until(lambda: cell(page, stage.busy.uid, "Rate") != "0 b/s")
    moved = in_bytes(cell(page, stage.busy.uid, "Moved"))
    stage.aps.stop(signal.SIGKILL)
    until(lambda: "may be old" in page.inner_text("#link"))
    assert cell(page, stage.busy.uid, "State") == "ACTIVE"  # as it was told last, and the streams go on
    stage.aps.start()
    page.wait_for_selector("#token", state="visible")  # who is logged in is in memory only
    page.fill("#token", stage.aps.token)
    page.keyboard.press("Enter")
    until(lambda: page.locator("#rows tr").count() > 1 and in_bytes(cell(page, stage.busy.uid, "Moved")) > moved)
    assert page.is_hidden("#link")
    until(lambda: cell(page, stage.busy.uid, "Rate") != "0 b/s")
    uids = (stage.busy.uid, stage.idle.uid)
    assert [cell(page, uid, "State") for uid in uids] == [stage.told()[uid].state for uid in uids] == ["ACTIVE"] * 2
    page.context.close()


def test_away_from_loopback_the_page_is_https_only(tmp_path: Path) -> None:
    found = (a.address for each in psutil.net_if_addrs().values() for a in each if a.family is socket.AF_INET)
    own = next((address for address in found if not address.startswith("127.")), "")
    if not own:
        pytest.skip("this host has no address but loopback")
    port = port_block()
    listen = f'["{own}:{port}", "127.0.0.1:{port}"]'
    with gateway(tmp_path / "g", "--host", own, SCISTREAM_WEB__LISTEN=listen) as running:
        trusting = ssl.create_default_context(cafile=str(running.directory / "certs" / "ca.crt"))
        with site(f"https://{own}:{port}", running.token, trusting) as page:
            assert page.get("/api/overview").json()["gateway"]["user"] == "admin"
            (cookie,) = page.http.cookies.jar
            assert (cookie.name[:16], cookie.secure) == ("__Host-scistream", True)
            subprocess.run([sys.executable, "-m", "s2cs", "reload", "--config", running.config], check=True)
            assert page.get("/").status_code == 200
        with site(f"http://127.0.0.1:{port}", running.token) as page:
            assert page.get("/api/overview").status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{own}:{port}/")
        old = ssl.create_default_context(cafile=str(running.directory / "certs" / "ca.crt"))
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"https://{own}:{port}/", verify=old)
