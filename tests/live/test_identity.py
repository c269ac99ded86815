"""Who one is to a gateway, and what one may do with the credentials one has."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime

import pytest
from click.testing import CliRunner, Result

from s2cs.cli import cli
from scistream.errors import ScistreamError
from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support.gateways import GatewayProcess, gateway

# What each method needs. The messages lead nowhere: who is let in hears of that.
METHODS = {
    "req": ("sessions", pb.Request()),
    "hello": ("sessions", pb.Hello(uid="none", role="PROD")),
    "update": ("sessions", pb.UpdateTargets(uid="none", role="PROD")),
    "release": ("sessions", pb.Release(uid="none")),
    "renew": ("sessions", pb.Renew(uid="none")),
    "list": ("read", pb.ListRequest()),
    "watch": ("read", pb.WatchRequest(uid="none")),
    "logs": ("read", pb.LogsRequest(uid="none")),
    "verify": ("sessions", pb.VerifyRequest(uid="none")),
    "describe": ("", pb.DescribeRequest()),
    "methods": ("", pb.MethodsRequest()),
}


def s2cs(running: GatewayProcess, *command: str, exit_status: int = 0) -> Result:
    """Run a command of the operator in this process: there are many, and each would start Python."""
    done = CliRunner().invoke(cli, [*command, "--config", str(running.config)])
    error = done.exception
    assert (error.exit_status if isinstance(error, ScistreamError) else done.exit_code) == exit_status, done.output
    return done


def add_user(running: GatewayProcess, name: str, *options: str) -> str:
    return s2cs(running, "user", "add", name, *options).stdout.strip()


def refusals(running: GatewayProcess, name: str) -> list[tuple[str, str]]:
    """Read from the audit log what somebody was refused, a moment later: events and statuses."""
    for _ in range(100):
        lines = s2cs(running, "audit", "show", "--json", "--event", "refused", "--user", name).stdout.splitlines()
        if lines:
            break
        time.sleep(0.05)
    return [(line["event"], line["status"]) for line in map(json.loads, lines) if line["user"] == name]


def outcome(running: GatewayProcess, token: str, method: str = "describe") -> tuple[str, str]:
    """Call a method; the status, and what was said."""
    with running.client(token) as client:
        try:
            answer = getattr(client, method)(METHODS[method][1], timeout=20)
            if method == "watch":
                next(answer)
        except grpc.RpcError as error:
            return error.code().name, error.details()
        return "OK", ""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    directory = tmp_path_factory.mktemp("identity") / "g"
    with gateway(directory) as running:
        yield running


def test_what_one_is_told_without_credentials(running: GatewayProcess) -> None:
    with running.client("") as stranger:
        assert list(stranger.methods(pb.MethodsRequest()).methods) == [pb.Method(kind="token")]


def test_who_one_is(running: GatewayProcess) -> None:
    with running.client(add_user(running, "olga", "--operator", "--group", "b", "--group", "a")) as olga:
        found = olga.describe(pb.DescribeRequest())
    assert (found.user, found.role, found.method) == ("olga", "operator", "token")
    assert (list(found.groups), list(found.scopes)) == (["a", "b"], ["admin", "read", "sessions"])
    assert found.identity.startswith("local:")
    assert not found.HasField("authenticated_until")


def test_every_method_has_its_scope() -> None:
    assert set(METHODS) == {method.name for method in pb.DESCRIPTOR.services_by_name["Control"].methods}


@pytest.mark.parametrize("scopes", [("read",), ("sessions",), ("admin",), ("read", "sessions", "admin")], ids=" ".join)
def test_scopes(running: GatewayProcess, scopes: tuple[str, ...]) -> None:
    """For an admin: the scopes of the token are what counts."""
    options = [word for scope in scopes for word in ("--scope", scope)]
    token = add_user(running, f"admin-{'-'.join(scopes)}", "--admin", *options)
    implied = {*scopes, *(["read"] if "sessions" in scopes else [])}
    for method, (scope, _) in METHODS.items():
        status, words = outcome(running, token, method)
        if scope and scope not in implied:
            assert (status, f"the scope {scope}" in words) == ("PERMISSION_DENIED", True), method
        else:
            assert status != "PERMISSION_DENIED", (method, words)
    with running.client(token) as client:
        assert client.describe(pb.DescribeRequest()).admin == ("admin" in scopes)


def test_an_admins_token_for_sessions_only_touches_no_others(running: GatewayProcess) -> None:
    tame = add_user(running, "tame", "--admin", "--scope", "sessions")
    with running.client() as admin, running.client(tame) as client:
        admin.req(pb.Request(uid="mine", role="PROD", num_conn=1, immediate=True))
        assert not client.list(pb.ListRequest()).sessions
        with pytest.raises(grpc.RpcError, match="there is no session mine of yours"):
            client.release(pb.Release(uid="mine"))
        admin.release(pb.Release(uid="mine"))


class TestTokens:
    def test_several_and_one_is_revoked(self, running: GatewayProcess) -> None:
        first = add_user(running, "ann", "--expires", "1h")
        second = s2cs(running, "user", "token", "add", "ann", "--scope", "read").stdout.strip()
        rows = json.loads(s2cs(running, "user", "token", "list", "ann", "--json").stdout)
        assert [row["scopes"] for row in rows] == [["admin", "read", "sessions"], ["read"]]
        assert rows[0]["expires_at"] > rows[0]["created_at"]
        assert rows[1]["expires_at"] is None
        listed = s2cs(running, "user", "token", "list", "ann").stdout
        assert first not in listed
        assert "last used never" in listed
        with running.client(first) as client:
            until = client.describe(pb.DescribeRequest()).authenticated_until
            assert 3500 < until.ToSeconds() - time.time() <= 3600
        s2cs(running, "user", "token", "revoke", "ann", rows[0]["id"])
        assert outcome(running, first)[0] == "UNAUTHENTICATED"
        assert outcome(running, second)[0] == "OK"
        again = s2cs(running, "user", "token", "revoke", "ann", rows[0]["id"], exit_status=5)
        assert "no such token" in str(again.exception)

    def test_one_that_has_expired(self, running: GatewayProcess) -> None:
        token = add_user(running, "eve", "--expires", "1s")
        time.sleep(1.1)
        status, words = outcome(running, token)
        assert (status, "of eve has expired" in words) == ("UNAUTHENTICATED", True)
        assert token not in words
        assert "expired" in s2cs(running, "user", "token", "list", "eve").stdout

    def test_what_it_is_not_for(self, running: GatewayProcess) -> None:
        reader = add_user(running, "rea", "--scope", "read", "--scope", "admin")
        status, words = outcome(running, reader, "release")
        assert status == "PERMISSION_DENIED"
        assert words.endswith("yours have read")  # that of an admin is for nothing with a user's role
        assert refusals(running, "rea") == [("call.release", "PERMISSION_DENIED")]

    def test_rotation(self, running: GatewayProcess) -> None:
        old = add_user(running, "rob", "--scope", "read", "--expires", "1d")
        new = s2cs(running, "user", "rotate", "rob", "--overlap", "2s").stdout.strip()
        before, after = json.loads(s2cs(running, "user", "token", "list", "rob", "--json").stdout)
        ends = datetime.fromisoformat(before["expires_at"]).timestamp()  # in whole seconds
        assert outcome(running, old)[0] == "OK" or time.time() >= ends
        assert outcome(running, new)[0] == "OK"
        assert (before["scopes"], after["scopes"]) == (["read"], ["read"])
        assert before["expires_at"] < after["expires_at"]
        time.sleep(max(0.0, ends + 1 - time.time()))
        assert (outcome(running, old)[0], outcome(running, new)[0]) == ("UNAUTHENTICATED", "OK")
        s2cs(running, "user", "rotate", "rob")  # the one that has ended is not asked about
        assert "name one with --token" in str(s2cs(running, "user", "rotate", "rob", exit_status=2).exception)

    def test_a_user_is_disabled_and_enabled(self, running: GatewayProcess) -> None:
        token = add_user(running, "dan")
        s2cs(running, "user", "disable", "dan")
        assert outcome(running, token) == (
            "PERMISSION_DENIED",
            "dan is disabled at this gateway; ask its operator why",
        )
        assert "disabled" in s2cs(running, "user", "list").stdout
        assert refusals(running, "dan") == [("call.describe", "PERMISSION_DENIED")]
        s2cs(running, "user", "enable", "dan")
        assert outcome(running, token)[0] == "OK"

    def test_a_user_is_changed_and_stays_who_it_is(self, running: GatewayProcess) -> None:
        with running.client(add_user(running, "cay", "--group", "a")) as client:
            before = client.describe(pb.DescribeRequest())
            s2cs(running, "user", "change", "cay", "--role", "operator", "--group", "b", "--group", "c")
            after = client.describe(pb.DescribeRequest())
        assert (before.role, list(before.groups)) == ("user", ["a"])
        assert (after.role, list(after.groups), after.identity) == ("operator", ["b", "c"], before.identity)

    def test_what_is_not_there_or_makes_no_sense(self, running: GatewayProcess) -> None:
        for command, says, exit_status in (
            (("disable", "nobody"), "there is no user nobody", 5),
            (("token", "add", "nobody"), "there is no user nobody", 5),
            (("change", "admin"), "nothing is to be changed", 2),
            (("add", "x", "--admin", "--operator"), "exclude each other", 2),
            (("add", "lab:x"), "user name 'lab:x' is not", 2),
            (("add", "x", "--expires", "soon"), "soon", 2),
            (("rotate", "admin", "--overlap", "never"), "never", 2),
        ):
            assert says in str(s2cs(running, "user", *command, exit_status=exit_status).exception)

    def test_a_token_that_nobody_could_read_is_not_kept(self, running: GatewayProcess) -> None:
        token = add_user(running, "kim")
        for command in (("token", "add", "kim"), ("rotate", "kim")):
            s2cs(running, "user", *command, "--token-file", str(running.config), exit_status=1)
        assert len(json.loads(s2cs(running, "user", "token", "list", "kim", "--json").stdout)) == 1
        assert outcome(running, token)[0] == "OK"


def test_the_last_use_is_noted(running: GatewayProcess) -> None:
    token = add_user(running, "lou")
    before = int(time.time())
    assert outcome(running, token)[0] == "OK"
    running.stop()
    (row,) = json.loads(s2cs(running, "user", "token", "list", "lou", "--json").stdout)
    used_at = time.mktime(time.strptime(row["used_at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert before <= used_at <= time.time()
    users = {user["name"]: user for user in json.loads(s2cs(running, "user", "list", "--json").stdout)}
    assert (users["lou"]["used_at"], users["lou"]["tokens"]) == (row["used_at"], 1)
    running.start()


@pytest.mark.parametrize(
    "taken_away",
    [["user", "remove"], ["user", "disable"], ["user", "change", "--role", "user"]],
    ids=["removed", "disabled", "no longer operator"],
)
def test_a_watch_of_anothers_session_ends_with_the_right_to_it(running: GatewayProcess, taken_away: list[str]) -> None:
    uid = f"watched-{'-'.join(taken_away)}".replace("--", "")
    name = f"operator-{taken_away[1]}"
    token = add_user(running, name, "--operator")
    with running.client() as admin, running.client(token) as operator:
        admin.req(pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True))
        watching = operator.watch(pb.WatchRequest(uid=uid), timeout=60)
        assert next(watching).session.state == "RESERVED"
        s2cs(running, *taken_away[:2], name, *taken_away[2:])
        with pytest.raises(grpc.RpcError) as ended:
            next(watching)
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert admin.list(pb.ListRequest(uid=uid)).sessions[0].state == "RESERVED"
        admin.release(pb.Release(uid=uid))
