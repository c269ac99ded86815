"""The gateway's page, asked by hand and by a real browser that never leaves loopback."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support.ports import port_block

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing of the browser's own may ask anybody outside: no name is looked up, and it does no business of its own.
_FLAGS = [
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


def with_page() -> tuple[str, dict[str, str]]:
    """Give the address that a gateway's page is to have, and the setting for it."""
    address = f"127.0.0.1:{port_block()}"
    return address, {"SCISTREAM_WEB__LISTEN": f'["{address}"]'}


class Site:
    """A page's address, and what its own script would send there."""

    def __init__(self, url: str, verify: Any = True) -> None:
        self.url = url
        self.own = {"Origin": url, "X-SciStream": "1", "Sec-Fetch-Site": "same-origin"}
        self.http = httpx.Client(base_url=url, timeout=20, verify=verify, trust_env=False)

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Ask for something."""
        return self.http.get(path, **more)

    def post(self, path: str, **body: Any) -> httpx.Response:
        """Do something as the page does."""
        return self.http.post(path, json=body, headers=self.own)

    def login(self, token: str) -> httpx.Response:
        """Log in; the cookie is kept."""
        return self.post("/api/login", token=token)


@contextmanager
def site(url: str, token: str = "", verify: Any = True) -> Iterator[Site]:
    """Look at a page, logged in if there is a token."""
    found = Site(url, verify)
    with found.http:
        if token:
            assert found.login(token).status_code == 200
        yield found


@contextmanager
def chromium() -> Iterator[Any]:
    """Run Chromium without a screen; skip where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; install it with: make chromium")
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: make test does it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        )
        try:
            yield browser
        finally:
            browser.close()
