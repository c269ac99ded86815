"""The provider that other tests believe: it does what they take for granted."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.provider import CLIENT_ID, DEVICE_GRANT, Browser, Provider, provider


def part(token: str, index: int) -> dict[str, Any]:
    text = token.split(".")[index]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


@pytest.fixture(scope="module")
def running() -> Iterator[Provider]:
    with provider(
        accounts={"ada": {"groups": ["beamline-7"]}},
        resources={"urn:es": {"algorithm": "ES256"}, "urn:opaque": {"format": "opaque"}},
    ) as found:
        yield found


def test_a_jwt_names_who_for_whom_and_what_for(running: Provider) -> None:
    token = running.token("ada", scope="sessions", resource="urn:scistream:aps")
    assert part(token, 0)["alg"] == "RS256"
    claims = part(token, 1)
    assert claims["iss"] == running.issuer
    assert (claims["sub"], claims["aud"], claims["scope"]) == ("ada", "urn:scistream:aps", "sessions")
    assert claims["groups"] == ["beamline-7"]
    assert part(running.token(resource="urn:es"), 0)["alg"] == "ES256"


def test_an_opaque_token_is_known_to_the_provider_alone_until_it_is_revoked(running: Provider) -> None:
    token = running.token("ada", scope="read", resource="urn:opaque")
    assert "." not in token
    found = running.introspect(token)
    assert (found["active"], found["sub"], found["scope"], found["aud"]) == (True, "ada", "read", "urn:opaque")
    running.client.post("/token/revocation", data={"token": token, "client_id": CLIENT_ID}).raise_for_status()
    assert running.introspect(token) == {"active": False}


def test_a_refresh_token_is_used_once(running: Provider) -> None:
    first = running.tokens(resource="urn:opaque")
    second = running.grant(grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert running.introspect(second["access_token"])["aud"] == "urn:opaque"
    running.grant(400, grant_type="refresh_token", refresh_token=first["refresh_token"])
    assert running.introspect(second["access_token"]) == {"active": False}


def test_a_device_code_waits_for_its_person(running: Provider) -> None:
    form = {"client_id": CLIENT_ID, "scope": "sessions", "resource": "urn:opaque"}
    begun = running.client.post("/device/auth", data=form).json()
    waiting = running.grant(400, grant_type=DEVICE_GRANT, device_code=begun["device_code"])
    assert waiting["error"] == "authorization_pending"
    assert "Success" in Browser("grace").open(begun["verification_uri_complete"]).text
    token = running.grant(grant_type=DEVICE_GRANT, device_code=begun["device_code"])["access_token"]
    assert running.introspect(token)["sub"] == "grace"


@pytest.mark.parametrize("consents", [True, False])
def test_a_person_may_refuse(running: Provider, consents: bool) -> None:
    begun = running.client.post("/device/auth", data={"client_id": CLIENT_ID, "scope": "sessions"}).json()
    Browser(consents=consents).open(begun["verification_uri_complete"])
    status = 200 if consents else 400
    found = running.grant(status, grant_type=DEVICE_GRANT, device_code=begun["device_code"])
    assert found.get("error") == (None if consents else "access_denied")


def test_keys_are_added_and_replaced(running: Provider) -> None:
    def published() -> set[str]:
        return {key["kid"] for key in running.client.get("/jwks").json()["keys"]}

    before, old = published(), part(running.token(resource="urn:a"), 0)["kid"]
    running.rotate_keys()
    assert before < published()
    assert part(running.token(resource="urn:a"), 0)["kid"] != old
    running.rotate_keys(replace=True)
    assert not before & published()


def test_it_can_be_out_of_order(running: Provider) -> None:
    running.set(outage="error")
    assert running.client.get("/jwks").status_code == 503
    running.set(outage="hang")
    with pytest.raises(httpx.ReadTimeout):
        running.client.get("/jwks", timeout=0.3)
    running.set(outage=None)
    assert running.client.get("/jwks").status_code == 200
