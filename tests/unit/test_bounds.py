"""The bounds of the control channel, with a clock of our own."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from s2cs import bounds as module
from s2cs.bounds import Bounds, Buckets, Peer
from scistream.errors import NotFound, ResourceExhausted, Unauthenticated

A, B = "ipv4:192.0.2.1:1000", "ipv4:192.0.2.2:1000"


@pytest.mark.parametrize(("words", "peer", "network"), [
    ("ipv4:192.0.2.1:50000", Peer("192.0.2.1", 50000), "192.0.2.1"),
    ("ipv6:%5B2001:db8::1%5D:50000", Peer("2001:db8::1", 50000), "2001:db8::/64"),
    ("ipv6:[2001:db8:0:0:1::9]:1", Peer("2001:db8::1:0:0:9", 1), "2001:db8::/64"),
    ("ipv6:%5Bfe80::1%25eth0%5D:7", Peer("fe80::1", 7), "fe80::/64"),
    ("ipv6:%5B::ffff:192.0.2.1%5D:7", Peer("192.0.2.1", 7), "192.0.2.1"),
    ("unix:/x", Peer("", 0), "elsewhere"),
    ("", Peer("", 0), "elsewhere"),
])  # fmt: skip
def test_where_a_call_comes_from(words: str, peer: Peer, network: str) -> None:
    assert Peer.of(words) == peer
    assert peer.network == network


def test_buckets_fill_again_and_forget_the_oldest() -> None:
    buckets = Buckets(most=2)
    for _ in range(10):
        assert buckets.has("a", 2, 0)
        buckets.take("a", 2, 0)
    assert not buckets.has("a", 2, 0.4)
    assert buckets.has("a", 2, 0.5)
    buckets.take("b", 2, 0.5)
    buckets.take("c", 2, 0.5)
    assert len(buckets) == 2
    assert buckets.has("a", 2, 0.5)


class Scene:
    """Bounds with limits and a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_WAIT_S", 0.0)
        self.now = 0.0
        self.limits = SimpleNamespace(call_rate=20, failure_rate=2)
        self.proved: list[Peer] = []
        self.bounds = Bounds(lambda: self.limits, self.proved.append, lambda: self.now)

    async def call(self, peer: str, credential: str, good: bool, open_to_all: bool = False) -> str:
        try:
            async with self.bounds.visit(peer, credential, open_to_all) as visit:
                if good:
                    visit.good()
                elif not open_to_all:
                    raise Unauthenticated("no")
        except ResourceExhausted as error:
            return str(error)
        except Unauthenticated:
            return "failed"
        return "ok"

    async def times(self, count: int, peer: str, credential: str, good: bool = False) -> list[str]:
        return [await self.call(peer, f"{credential}{number}", good) for number in range(count)]


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


async def test_failures_are_slowed_by_address_and_who_is_elsewhere_is_not(scene: Scene) -> None:
    answers = [await scene.call(A, f"{number:012}", False) for number in range(15)]
    assert answers[:10] == ["failed"] * 10
    assert all("too many failed authentications from 192.0.2.1" in answer for answer in answers[10:])
    assert await scene.call(B, "right", True) == "ok"
    scene.now += 1
    assert [await scene.call(A, f"{number:012}", False) for number in range(3)][:2] == ["failed"] * 2


async def test_who_was_good_lately_is_let_in_from_behind_the_same_address(scene: Scene) -> None:
    assert await scene.call(A, "right", True) == "ok"
    await scene.times(50, A, "wrong")
    assert await scene.call(A, "right", True) == "ok"
    assert "too many" in await scene.call(A, "another", True)
    scene.now += 0.5
    assert await scene.call(A, "another", True) == "ok"


async def test_guesses_that_begin_alike_are_slowed_wherever_they_come_from(scene: Scene) -> None:
    answers = [await scene.call(f"ipv4:198.51.100.{number}:1", f"s2t_AbCdEfGh{number}", False) for number in range(15)]
    assert answers[:10] == ["failed"] * 10
    assert all("too many" in answer for answer in answers[10:])


async def test_good_calls_cost_no_failure_and_are_bounded_by_their_credential(scene: Scene) -> None:
    assert set(await scene.times(60, A, "first-seen-", good=True)) == {"ok"}
    answers = [await scene.call(B, "same", True) for _ in range(150)]
    assert answers.count("ok") == 101  # the first one, when it was not known yet, and 100 at once
    assert "over 20 a second" in answers[-1]
    assert await scene.call(B, "someone else", True) == "ok"
    assert scene.proved[0] == Peer("192.0.2.1", 1000)


async def test_a_credential_that_is_good_no_more_is_counted_again(scene: Scene) -> None:
    assert await scene.call(A, "gone", True) == "ok"
    answers = [await scene.call(A, "gone", False) for _ in range(15)]
    assert answers[:11] == ["failed"] * 11
    assert "too many" in answers[11]


async def test_a_refusal_for_another_reason_counts_against_nobody_who_is_known(scene: Scene) -> None:
    async def look() -> None:
        async with scene.bounds.visit(A, "mine") as visit:
            visit.good()
            raise NotFound("there is none")

    for _ in range(30):
        with pytest.raises(NotFound):
            await look()
    assert await scene.call(A, "mine", True) == "ok"


async def test_what_is_open_to_all_proves_nothing(scene: Scene) -> None:
    answers = [await scene.call(A, "", True, open_to_all=True) for _ in range(120)]
    assert answers.count("ok") == 100
    assert scene.proved == []


async def test_waiting_calls_are_few_and_get_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 5)
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    scene = Scene(monkeypatch)
    monkeypatch.setattr(module, "_WAIT_S", 60.0)
    for number in range(10):
        await scene.call(A, f"{number:012}", False)
    calls = [asyncio.create_task(scene.call(A, f"{number:012}", False)) for number in range(20)]
    await asyncio.sleep(0.05)
    assert sum(call.done() for call in calls) == 15
    scene.now += 5
    assert (await asyncio.gather(*calls)).count("failed") == 5
