"""Tokens of an OpenID Connect provider that runs, and tokens that somebody made up."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support import programs
from tests.support.gateways import GatewayProcess, gateway
from tests.support.provider import CLIENT_ID, GATEWAY_ID, GATEWAY_SECRET, Provider, provider

AUDIENCE = "urn:scistream:aps"
OPAQUE = "urn:opaque"
KEYS = "/jwks"
FORGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@dataclass
class Site:
    """A gateway that believes a provider."""

    gateway: GatewayProcess
    issuer: Provider

    def configure(self, text: str) -> None:
        """Change its settings."""
        self.gateway.config.write_text(self.plain + text)
        self.s2cs("reload")

    def s2cs(self, *command: str) -> str:
        """Run a command of the operator."""
        done = programs.run("s2cs", *command, "--config", self.gateway.config)
        done.check_returncode()
        return done.stdout

    def __post_init__(self) -> None:
        self.plain = self.gateway.config.read_text()

    def believe(self, more: str = "", opaque: str = "", scopes: tuple[str, ...] = ("read",)) -> None:
        """Believe the provider, with more settings."""
        self.configure(f"""
[[auth.oidc]]
name = "lab"
issuer = "{self.issuer.issuer}"
audience = "{AUDIENCE}"
login_client = "{CLIENT_ID}"
groups_claim = "groups"
operator_groups = ["staff"]
admins = ["root"]
{more}
[[auth.introspection]]
name = "shop"
endpoint = "{self.issuer.issuer}/token/introspection"
client_id = "{GATEWAY_ID}"
secret_env = "SHOP_SECRET"
username_claim = "sub"
required_scopes = {json.dumps(scopes)}
cache = 1
negative_cache = 1
{opaque}
""")

    def whoami(self, token: str) -> pb.GatewayDescription:
        """Ask who one is."""
        with self.gateway.client(token) as client:
            found: pb.GatewayDescription = client.describe(pb.DescribeRequest(), timeout=30)
            return found

    def refusal(self, token: str) -> tuple[str, str]:
        """Ask who one is, and be refused."""
        with pytest.raises(grpc.RpcError) as caught:
            self.whoami(token)
        assert token not in self.gateway.log
        return caught.value.code().name, caught.value.details()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    accounts = {"olga": {"groups": ["staff", "b7"]}, "odd": {"preferred_username": "a\nb"}}
    resources = {OPAQUE: {"format": "opaque"}, "urn:es": {"algorithm": "ES256"}}
    with (
        provider(accounts=accounts, resources=resources) as issuer,
        gateway(tmp_path_factory.mktemp("oidc") / "g", SHOP_SECRET=GATEWAY_SECRET) as running,
    ):
        site = Site(running, issuer)
        site.believe()
        yield site


def claims_of(site: Site, **changes: Any) -> dict[str, Any]:
    """What a good token says, but for changes; None leaves a claim out."""
    now = int(time.time())
    claims = {"iss": site.issuer.issuer, "aud": AUDIENCE, "sub": "ada", "exp": now + 600, "iat": now} | changes
    return {name: value for name, value in claims.items() if value is not None}


def published(site: Site) -> dict[str, Any]:
    """The provider's key for RS256."""
    keys = site.issuer.client.get(KEYS).json()["keys"]
    return next(key for key in keys if key["kty"] == "RSA")


def unsigned(site: Site, algorithm: str = "none") -> str:
    parts = [{"alg": algorithm, "typ": "at+jwt", "kid": published(site)["kid"]}, claims_of(site)]
    texts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts]
    return ".".join([*texts, ""])


def signed_with_the_public_key(site: Site) -> str:
    """HS256 with what everybody knows as the secret."""
    public = jwt.PyJWK(published(site)).key
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = unsigned(site, "HS256").rstrip(".")
    mac = hmac.new(pem, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def forged(site: Site, kid: str | None = None, **changes: Any) -> str:
    """Signed with a key of one's own, under the name of the provider's."""
    headers = {"kid": kid or published(site)["kid"], "typ": "at+jwt"}
    return jwt.encode(claims_of(site, **changes), FORGER, algorithm="RS256", headers=headers)


class TestJwt:
    def test_a_good_token(self, site: Site) -> None:
        found = site.whoami(site.issuer.token("ada", resource=AUDIENCE))
        assert (found.user, found.identity) == ("lab:ada", "oidc:lab:ada")
        assert (found.method, found.role, list(found.scopes)) == ("oidc", "user", ["read", "sessions"])
        assert 3500 < found.authenticated_until.ToSeconds() - time.time() < 3700

    def test_ranks_and_groups(self, site: Site) -> None:
        olga = site.whoami(site.issuer.token("olga", resource=AUDIENCE))
        assert (olga.user, olga.role, olga.admin) == ("lab:olga", "operator", False)
        assert list(olga.groups) == ["lab:b7", "lab:staff"]
        root = site.whoami(site.issuer.token("root", resource=AUDIENCE))
        assert (root.role, root.admin, list(root.scopes)) == ("admin", True, ["admin", "read", "sessions"])

    def test_sessions_are_apart_from_those_of_a_user_of_the_same_name(self, site: Site) -> None:
        local = site.gateway.add_user("ada")
        request = pb.Request(uid="apart", role="PROD", num_conn=1, immediate=True)
        with (
            site.gateway.client(site.issuer.token("ada", resource=AUDIENCE)) as outside,
            site.gateway.client(local) as ada,
        ):
            outside.req(request)
            assert [found.owner for found in outside.list(pb.ListRequest()).sessions] == ["lab:ada"]
            assert not ada.list(pb.ListRequest()).sessions
            outside.release(pb.Release(uid="apart"))

    def test_how_to_log_in_is_said(self, site: Site) -> None:
        with site.gateway.client("") as stranger:
            methods = {method.name: method for method in stranger.methods(pb.MethodsRequest()).methods}
        lab = methods["lab"]
        assert (lab.kind, lab.issuer, lab.client_id) == ("oidc", site.issuer.issuer, CLIENT_ID)
        assert (lab.audience, lab.device_flow) == (AUDIENCE, True)
        assert methods["shop"] == pb.Method(kind="introspection", name="shop")

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (unsigned, "is signed by 'none'"),
            (lambda site: unsigned(site, "None"), "is signed by 'None'"),
            (signed_with_the_public_key, "is signed by 'HS256'"),
            (forged, "is not signed by its issuer"),
            (lambda site: forged(site, kid="mine"), "with a key that its issuer has not"),
            (lambda site: site.issuer.token("ada", resource="urn:other"), "is not for this gateway"),
            (lambda site: site.issuer.tokens("ada")["id_token"], "is not for this gateway"),
            (lambda site: forged(site, iss="https://evil.example.org"), "are not accepted here"),
            (lambda site: forged(site, iss=None), "tokens of '' are not accepted here"),
            (
                lambda site: site.issuer.token("ada", resource=AUDIENCE)[:-9] + "AAAAAAAAA",
                "is not signed by its issuer",
            ),
        ],
        ids=[
            "alg=none",
            "alg=None",
            "HS256 with the public key",
            "another key",
            "unknown key",
            "wrong audience",
            "ID token",
            "wrong issuer",
            "no issuer",
            "signature changed",
        ],
    )
    def test_a_bad_token(self, site: Site, make: Callable[[Site], str], says: str) -> None:
        status, words = site.refusal(make(site))
        assert status == "UNAUTHENTICATED"
        assert says in words

    def test_a_header_that_brings_its_own_key(self, site: Site) -> None:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(FORGER.public_key()))
        for own in ({"jwk": public}, {"jku": "http://127.0.0.1:1/keys"}, {"x5u": "http://127.0.0.1:1/crt"}):
            token = jwt.encode(claims_of(site), FORGER, algorithm="RS256", headers={"typ": "JWT", **own})
            assert site.refusal(token) == ("UNAUTHENTICATED", "the token of lab is not signed by its issuer")
        token = jwt.encode(claims_of(site), ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")
        assert "is not signed by its issuer" in site.refusal(token)[1]

    def test_a_token_that_has_expired_and_clocks_that_differ(self, site: Site) -> None:
        site.issuer.set(accessTokenTtl=1)
        token = site.issuer.token("ada", resource=AUDIENCE)
        site.issuer.set(accessTokenTtl=3600)
        time.sleep(2)
        assert site.whoami(token).user == "lab:ada"  # clocks may differ by 30 s
        site.believe("leeway = 0")
        assert site.refusal(token) == ("UNAUTHENTICATED", "the token of lab has expired; log in again")
        site.believe()

    def test_a_watch_ends_with_the_token(self, site: Site) -> None:
        site.believe("leeway = 0")
        site.issuer.set(accessTokenTtl=3)
        token = site.issuer.token("ada", resource=AUDIENCE)
        site.issuer.set(accessTokenTtl=3600)
        with site.gateway.client(token) as ada:
            ada.req(pb.Request(uid="watched", role="PROD", num_conn=1, immediate=True))
            events = ada.watch(pb.WatchRequest(uid="watched"), timeout=60)
            with pytest.raises(grpc.RpcError, match="have come to their end") as caught:
                list(events)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with site.gateway.client() as admin:
            admin.release(pb.Release(uid="watched"))
        site.believe()

    def test_scopes(self, site: Site) -> None:
        only_read = site.issuer.token("ada", scope="read", resource=AUDIENCE)
        site.believe("required_scopes = ['sessions']")
        status, words = site.refusal(only_read)
        assert (status, "lacks the scope sessions" in words) == ("PERMISSION_DENIED", True)
        site.believe("grants = {read = ['read'], admin = ['admin', 'sessions']}")
        assert list(site.whoami(only_read).scopes) == ["read"]
        with (
            site.gateway.client(only_read) as ada,
            pytest.raises(grpc.RpcError, match="needs credentials with the sco"),
        ):
            ada.req(pb.Request(uid="no", role="PROD", num_conn=1, immediate=True))
        neither = site.issuer.token("ada", scope="sessions", resource=AUDIENCE)
        assert "has none of the scopes" in site.refusal(neither)[1]
        tame = site.whoami(site.issuer.token("root", scope="read", resource=AUDIENCE))
        assert (tame.role, tame.admin) == ("user", False)  # the token is not for an admin's work
        site.believe()

    def test_a_name_that_cannot_be_shown(self, site: Site) -> None:
        site.believe("username_claim = 'preferred_username'")
        status, words = site.refusal(site.issuer.token("odd", resource=AUDIENCE))
        assert (status, "names here are" in words) == ("UNAUTHENTICATED", True)
        site.believe()

    def test_settings_that_cannot_be_used_leave_the_old_in_force(self, site: Site) -> None:
        token = site.issuer.token("ada", resource=AUDIENCE)
        with pytest.raises(subprocess.CalledProcessError) as caught:
            site.believe("ca = 'none.crt'")
        assert "none.crt cannot be used" in caught.value.stderr
        assert site.whoami(token).user == "lab:ada"
        site.believe()

    def test_an_outsider_is_disabled_and_enabled(self, site: Site) -> None:
        token = site.issuer.token("mallory", resource=AUDIENCE)
        assert site.whoami(token).user == "lab:mallory"
        site.s2cs("user", "disable", "lab:mallory")
        status, words = site.refusal(token)
        assert (status, "lab:mallory is disabled" in words) == ("PERMISSION_DENIED", True)
        site.s2cs("user", "enable", "lab:mallory")
        assert site.whoami(token).user == "lab:mallory"


def test_s2cs_check_asks_the_issuers(site: Site) -> None:
    def said() -> str:
        return programs.run("s2cs", "check", "--config", site.gateway.config, SHOP_SECRET=GATEWAY_SECRET).stdout

    found = said()
    assert re.search(r"ok    \[\[auth.oidc\]\] lab: its issuer publishes \d keys that fit", found)
    assert "ok    [[auth.introspection]] shop: its issuer answers" in found
    site.issuer.set(outage="error")
    try:
        assert "warn  shop of [auth] cannot be used now" in (found := said())
        assert "warn  lab of [auth] cannot be used now" in found
    finally:
        site.issuer.set(outage=None)


class TestKeys:
    def test_rotation_is_noticed_and_costs_no_more_than_one_look_in_ten_seconds(self, site: Site) -> None:
        before = site.issuer.token("ada", resource=AUDIENCE)
        assert site.whoami(before).user == "lab:ada"
        site.issuer.rotate_keys()
        after = site.issuer.token("ada", resource=AUDIENCE)
        looks, begin = site.issuer.counts()[KEYS], time.monotonic()
        deadline = begin + 30
        while True:  # at once, but for a look that some test had a moment ago
            try:
                assert site.whoami(after).user == "lab:ada"
                break
            except grpc.RpcError as error:
                assert "a key that its issuer has not" in error.details()
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert site.whoami(before).user == "lab:ada"  # its key is published still
        for number in range(20):
            site.refusal(forged(site, kid=f"made-up-{number}"))
        assert site.issuer.counts()[KEYS] <= looks + 2 + (time.monotonic() - begin) // 10

    def test_an_issuer_that_cannot_be_reached(self, site: Site) -> None:
        token = site.issuer.token("ada", resource=AUDIENCE)
        assert site.whoami(token).user == "lab:ada"
        site.issuer.set(outage="error")
        try:
            site.believe("keys_ttl = 1")
            time.sleep(1)
            assert site.whoami(token).user == "lab:ada"  # by the keys from before, which are kept over a reload
            site.believe("keys_ttl = 1\nkeys_kept = 1")
            status, words = site.refusal(token)
            assert status == "UNAVAILABLE"
            assert "cannot be asked for its keys now" in words
            with site.gateway.client() as admin:  # who needs no issuer notices nothing
                assert admin.describe(pb.DescribeRequest()).user == "admin"
        finally:
            site.issuer.set(outage=None)
            site.believe()


class TestIntrospection:
    def test_a_good_token(self, site: Site) -> None:
        found = site.whoami(site.issuer.token("ada", resource=OPAQUE))
        assert (found.user, found.identity) == ("shop:ada", "introspection:shop:ada")
        assert (found.method, list(found.scopes)) == ("introspection", ["read", "sessions"])

    def test_an_answer_is_believed_for_a_moment(self, site: Site) -> None:
        token = site.issuer.token("ada", resource=OPAQUE)
        before, begin = site.issuer.counts()["/token/introspection"], time.monotonic()
        for _ in range(10):
            site.whoami(token)
        asked = site.issuer.counts()["/token/introspection"] - before
        assert 0 < asked <= 2 + (time.monotonic() - begin)  # once a second

    def test_replay_after_revocation(self, site: Site) -> None:
        token = site.issuer.token("ada", resource=OPAQUE)
        assert site.whoami(token).user == "shop:ada"
        site.issuer.client.post("/token/revocation", data={"client_id": CLIENT_ID, "token": token}).raise_for_status()
        time.sleep(1.1)
        assert site.refusal(token) == (
            "UNAUTHENTICATED",
            "the token is not good, says the issuer of shop; log in again",
        )

    def test_a_made_up_token(self, site: Site) -> None:
        assert site.refusal("made-up")[0] == "UNAUTHENTICATED"

    def test_the_key_of_a_session_is_not_shown_to_the_issuer(self, site: Site) -> None:
        key = "the-key-of-one-session"
        with site.gateway.client() as admin, site.gateway.client(key) as application:
            sha256 = hashlib.sha256(key.encode()).digest()
            request = pb.Request(uid="keyed", role="PROD", num_conn=1, immediate=True, hello_key_sha256=sha256)
            admin.req(request)
            before = site.issuer.counts()["/token/introspection"]
            application.hello(pb.Hello(uid="keyed", role="PROD", prod_listeners=["127.0.0.1:9"]))
            assert site.issuer.counts()["/token/introspection"] == before
            admin.release(pb.Release(uid="keyed"))

    def test_required_scope_and_audience(self, site: Site) -> None:
        token = site.issuer.token("ada", scope="read", resource=OPAQUE)
        site.believe(opaque=f"audience = '{OPAQUE}'")
        assert site.whoami(token).user == "shop:ada"
        site.believe(scopes=("read", "sessions"))
        assert site.refusal(token)[0] == "PERMISSION_DENIED"
        site.believe(opaque="audience = 'urn:other'")
        assert "is not for this gateway" in site.refusal(token)[1]
        site.believe()

    def test_an_issuer_that_cannot_be_reached(self, site: Site) -> None:
        token = site.issuer.token("ada", resource=OPAQUE)
        site.issuer.set(outage="error")
        try:
            status, words = site.refusal(token)
            assert (status, "cannot be asked now" in words) == ("UNAVAILABLE", True)
        finally:
            site.issuer.set(outage=None)
        assert site.whoami(site.issuer.token("ada", resource=OPAQUE)).user == "shop:ada"
