"""Where a session goes: by free rate, then by ports, and always the same way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2cs.s2ds.contract import BackendInfo, Capability, TunnelSpec
from s2cs.s2ds.placing import Candidate, place
from scistream.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, ScistreamError, Unavailable
from scistream.vocabulary import Rate, Role, Uid

NGINX = BackendInfo("nginx", frozenset(Capability), "1.22")
HAPROXY = BackendInfo("haproxy", frozenset(Capability), "2.6")
NO_HAPROXY = BackendInfo("haproxy", frozenset(Capability), reason="haproxy is not installed")


def spec(num_conn: int = 1, rate: int = 0, backend: str = "auto") -> TunnelSpec:
    return TunnelSpec("x", Uid("u"), Role.PROD, num_conn, backend, Rate(rate))


def node(name: str, free_ports: int = 10, **more: object) -> Candidate:
    return Candidate(name, free_ports, **{"backends": (NGINX, NO_HAPROXY), **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "best"),
    [
        ([node("b"), node("a")], ["a", "b"]),
        ([node("a", 5), node("b", 7), node("c", 7)], ["b", "c", "a"]),
        ([node("a", 9, capacity=100, reserved=60), node("b", 1, capacity=80)], ["b", "a"]),
        ([node("a", 9, capacity=100), node("b", 1)], ["b", "a"]),  # without a limit it has more than any
        ([node("a", reserved=50), node("b", 1, reserved=10)], ["b", "a"]),
        ([node("a", lost="node a is lost"), node("b", drained=True), node("c")], ["c"]),
    ],
)
def test_the_best_comes_first(nodes: list[Candidate], best: list[str]) -> None:
    assert place(spec(), nodes) == best


@pytest.mark.parametrize(
    ("asked", "nodes", "error", "words"),
    [
        (spec(11), [node("a")], ResourceExhausted, "node a has 10 free ports"),
        (spec(rate=50), [node("a", capacity=100, reserved=60)], ResourceExhausted, "node a has 320 b/s left"),
        (spec(rate=50), [node("a", capacity=100, reserved=100)], ResourceExhausted, "nothing left of its rate"),
        (
            spec(rate=50),
            [node("a", capacity=60, reserved=40), node("b", capacity=60, reserved=20), node("c", drained=True)],
            ResourceExhausted,
            "session: node b has 320 b/s left .*; node a has 160 b/s left .*; node c is being drained",
        ),
        (spec(), [node("a", drained=True), node("b", lost="b is lost")], ResourceExhausted, "drained; b is lost"),
        (spec(), [node("a", lost="a is lost")], Unavailable, "no gateway node can take the session: a is lost"),
        (spec(backend="haproxy"), [node("a")], FailedPrecondition, "node a: haproxy is not installed"),
        (spec(backend="haproxy"), [node("a"), node("b", lost="b is lost")], FailedPrecondition, "not installed"),
        (spec(backend="squid"), [node("a")], InvalidArgument, "squid.*nginx, haproxy"),
    ],
)
def test_a_refusal_says_what_each_node_lacks(
    asked: TunnelSpec, nodes: list[Candidate], error: type[ScistreamError], words: str
) -> None:
    with pytest.raises(error, match=words):
        place(asked, nodes)


def test_a_backend_that_only_one_node_has_is_had_there() -> None:
    nodes = [node("a", 99), node("b", 1, backends=(NGINX, HAPROXY))]
    assert place(spec(backend="haproxy"), nodes) == ["b"]


NODES = st.lists(
    st.builds(
        Candidate,
        name=st.text("abc", min_size=1),
        free_ports=st.integers(0, 5),
        backends=st.just((NGINX,)),
        capacity=st.sampled_from([0, 10, 20]),
        reserved=st.integers(0, 25),
        lost=st.sampled_from(["", "lost"]),
        drained=st.booleans(),
    ),
    unique_by=lambda node: node.name,
)


@given(NODES, st.integers(1, 6), st.integers(0, 25), st.randoms())
def test_whatever_there_is_only_nodes_with_room_are_named_and_the_order_does_not_matter(
    nodes: list[Candidate], num_conn: int, rate: int, chance: object
) -> None:
    asked = spec(num_conn, rate)
    mixed = list(nodes)
    chance.shuffle(mixed)  # type: ignore[attr-defined]
    if not nodes:
        return
    try:
        best = place(asked, nodes)
    except ScistreamError as error:
        with pytest.raises(type(error)):
            place(asked, mixed)
        return
    assert place(asked, mixed) == best
    known = {node.name: node for node in nodes}
    for name in best:
        found = known[name]
        assert not found.lost
        assert not found.drained
        assert found.free_ports >= num_conn
        assert found.free_rate >= rate
    assert [known[name].free_rate for name in best] == sorted((known[name].free_rate for name in best), reverse=True)
