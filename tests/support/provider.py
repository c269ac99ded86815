"""A real OpenID Connect provider as a process on loopback, and a person with a browser.

    with provider() as issuer:
        tokens = issuer.tokens("ada", resource="urn:scistream:aps")

What it is and can be told is at the top of `oidc/provider.mjs`. The fixture `oidc` shares one among all tests that
leave its settings alone.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import secrets
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urljoin, urlsplit

import httpx
import pytest

HERE = Path(__file__).parent / "oidc"
CLIENT_ID = "s2uc"  # public, for code flow and device flow
GATEWAY_ID, GATEWAY_SECRET = "gateway", "gateway-secret"  # may introspect
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"
_REDIRECT = "http://127.0.0.1/callback"
BROWSER = f"{sys.executable} -m tests.support.provider {{}} %s"  # for the environment, with the user's name
_START_S = 20


def missing() -> str:
    """Say what a provider lacks here; empty when one can be run."""
    if shutil.which("node") is None:
        return "the test provider needs node 20 or newer"
    if not (HERE / "node_modules" / "oidc-provider").is_dir():
        return "the test provider is not installed; run: make provider"
    return ""


@dataclass(frozen=True)
class Browser:
    """Somebody who signs in and agrees, or does not. Nothing is remembered from one visit to the next."""

    user: str = "ada"
    consents: bool = True

    def open(self, url: str) -> httpx.Response:
        """Go through the pages as a person does; the last one, or the redirect that leaves the provider."""
        home = urlsplit(url).netloc
        with httpx.Client(trust_env=False, timeout=20) as client:
            answer = client.get(url)
            for _ in range(20):
                if answer.is_redirect:
                    target = urljoin(str(answer.url), answer.headers["location"])
                    if urlsplit(target).netloc != home:
                        return answer
                    answer = client.get(target)
                elif (step := self._next(answer)) is None:
                    return answer
                else:
                    answer = client.send(step(client))
        raise AssertionError(f"{self.user} goes in circles at {answer.url}")

    def _next(self, page: httpx.Response) -> Callable[[httpx.Client], httpx.Request] | None:
        """Fill in a page; None when it asks for nothing."""
        form = re.search(r'<form[^>]*action="([^"]+)"[^>]*>(.*?)</form>', page.text, re.DOTALL)
        if page.status_code != 200 or form is None or "was interrupted" in page.text:
            return None
        fields = dict(re.findall(r'name="(\w+)"\s+value="([^"]*)"', form[2]))
        abort = re.search(r'href="([^"]+/abort)"', page.text)
        if 'name="login"' in form[2]:
            fields |= {"login": self.user, "password": "any"}
        elif abort and not self.consents:
            return lambda client: client.build_request("GET", urljoin(str(page.url), html.unescape(abort[1])))
        elif "confirm" in fields and not self.consents:
            fields["abort"] = "yes"
        target = urljoin(str(page.url), html.unescape(form[1]))
        return lambda client: client.build_request("POST", target, data=fields)

    def leave(self, url: str) -> str:
        """Go through the pages; where the provider sends the browser at the end."""
        answer = self.open(url)
        assert answer.is_redirect, answer.text
        return str(answer.headers["location"])

    def finish(self, url: str) -> httpx.Response:
        """Go through the pages, and back to the program that sent the browser there."""
        return httpx.get(self.leave(url), trust_env=False, timeout=20)


@dataclass
class Provider:
    """An issuer that runs."""

    issuer: str
    process: subprocess.Popen[str]
    client: httpx.Client

    def set(self, **settings: object) -> None:
        """Change its settings, from now on; those of `provider.mjs`."""
        self.client.post("/control", json=settings).raise_for_status()

    def rotate_keys(self, *, replace: bool = False) -> None:
        """Sign with new keys; the old ones stay published unless they are replaced."""
        self.set(rotate="replace" if replace else "add")

    def counts(self) -> Counter[str]:
        """How often each path has been asked for; 0 of those that never were."""
        return Counter(self.client.get("/control").json())

    def metadata(self) -> dict[str, Any]:
        """What it says of itself."""
        found: dict[str, Any] = self.client.get("/.well-known/openid-configuration").json()
        return found

    def tokens(
        self, user: str = "ada", *, scope: str = "openid sessions read", resource: str | None = None
    ) -> dict[str, Any]:
        """Sign somebody in with code and PKCE; the token answer."""
        verifier = secrets.token_urlsafe(48)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        query = {
            "client_id": CLIENT_ID,
            "response_type": "code",
            "redirect_uri": _REDIRECT,
            "scope": scope,
            "code_challenge": challenge,
            "code_challenge_method": "S256",
            "state": "s",
        } | ({"resource": resource} if resource else {})
        back = Browser(user).leave(f"{self.issuer}/auth?{urlencode(query)}")
        [code] = parse_qs(urlsplit(back).query)["code"]
        grant = {"grant_type": "authorization_code", "code": code, "redirect_uri": _REDIRECT}
        return self.grant(200, **grant, code_verifier=verifier)

    def token(self, user: str = "ada", *, scope: str = "sessions read", resource: str | None = None) -> str:
        """Sign somebody in; the access token."""
        return str(self.tokens(user, scope=f"openid {scope}", resource=resource)["access_token"])

    def grant(self, expect: int = 200, **form: str) -> dict[str, Any]:
        """Ask the token endpoint as the public client."""
        answer = self.client.post("/token", data={"client_id": CLIENT_ID, **form})
        assert answer.status_code == expect, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def introspect(self, token: str) -> dict[str, Any]:
        """Ask what a token is worth, as a gateway does."""
        auth = (GATEWAY_ID, GATEWAY_SECRET)
        found: dict[str, Any] = self.client.post("/token/introspection", data={"token": token}, auth=auth).json()
        return found


@contextmanager
def provider(**settings: object) -> Iterator[Provider]:
    """Run a provider with settings of `provider.mjs`, or skip the test; `port` fixes its port."""
    if why := missing():
        pytest.skip(why)
    process = subprocess.Popen(
        ["node", "provider.mjs", json.dumps(settings)],
        cwd=HERE,
        stdin=subprocess.PIPE,  # it ends when this does, so also when the tests are killed
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=said.extend, args=(process.stderr,))
    reader.start()
    watchdog = threading.Timer(_START_S, process.kill)
    watchdog.start()
    try:
        issuer = process.stdout.readline().strip()
        watchdog.cancel()
        if not issuer:
            reader.join()
            raise RuntimeError("the provider does not start:\n" + "".join(said))
        with httpx.Client(base_url=issuer, trust_env=False, timeout=20) as client:
            yield Provider(issuer, process, client)
    finally:
        watchdog.cancel()
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()


if __name__ == "__main__":  # as the program that BROWSER names: USER URL
    Browser(sys.argv[1]).finish(sys.argv[2])
