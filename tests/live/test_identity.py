"""Who one is to a gateway, and what one may do with the credentials one has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from scistream.proto import scistream_pb2 as pb
from tests.support.gateways import GatewayProcess, gateway


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    directory = tmp_path_factory.mktemp("identity") / "g"
    with gateway(directory) as running:
        yield running


def test_what_one_is_told_without_credentials(running: GatewayProcess) -> None:
    with running.client("") as stranger:
        assert list(stranger.methods(pb.MethodsRequest()).methods) == [pb.Method(kind="token")]


def test_who_one_is(running: GatewayProcess) -> None:
    with running.client(running.add_user("olga", "--operator", "--group", "b", "--group", "a")) as olga:
        found = olga.describe(pb.DescribeRequest())
    assert (found.user, found.role, found.method) == ("olga", "operator", "token")
    assert (list(found.groups), list(found.scopes)) == (["a", "b"], ["admin", "read", "sessions"])
    assert found.identity.startswith("local:")
    assert not found.HasField("authenticated_until")
