"""Who may what: every kind of answer of the one function that decides, and where names lead."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2cs.policy.addresses import embedded, never, own_addresses, plain
from s2cs.policy.decision import (
    Action,
    Datagrams,
    Forward,
    Lease,
    Open,
    Trust,
    Use,
    allowed_backends,
    decide,
    hidden_rules,
    usual_lease,
)
from s2cs.policy.reach import Reach
from s2cs.policy.resolver import Resolver
from s2cs.policy.sessions import admit_targets, objection
from s2cs.settings import Settings
from scistream.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
)
from scistream.machine import Owner, Request, Session, Waits, open_session
from scistream.vocabulary import Endpoint, Rate, Role, Uid

ALICE = Owner("local:1", "alice")
BOB = Owner("local:2", "bob", frozenset({"tomo"}))
CAROL = Owner("local:3", "carol", frozenset({"tomo", "visitors"}))
DAVE = Owner("oidc:4", "lab:dave", frozenset({"nobody-knows"}))

SETTINGS = Settings.model_validate(
    {
        "limits": {"max_lease": "1d"},
        "policy": {
            "targets": ["10.1.0.0/16"],
            "peers": ["0.0.0.0/0", "::/0"],
            "rules": [
                {
                    "users": ["alice"],
                    "targets": ["10.1.7.0/24:5000-5999", "[2001:db8::/32]:80", "192.0.2.9"],
                    "max_lease": "8h",
                },
                {"groups": ["visitors"], "sessions": 1, "connections": 4, "rate": "1Gb/s", "backends": ["nginx"]},
                {"groups": ["tomo"], "peers": ["198.51.100.0/24"], "max_lease": "30d"},
            ],
        },
    }
)


def forward(text: str, role: Role = Role.PROD, **more: Any) -> Forward:
    endpoint = Endpoint.parse(text)
    assert endpoint.ip is not None
    return Forward(role, plain(endpoint.ip), endpoint.port, **more)


@pytest.mark.parametrize(
    ("user", "action", "allowed", "rule"),
    [
        (ALICE, forward("10.1.7.3:5000"), True, "[[policy.rules]] 1 targets"),
        (ALICE, forward("10.1.7.3:6000"), False, "[[policy.rules]] 1 targets"),
        (ALICE, forward("10.1.8.3:5000"), False, "[[policy.rules]] 1 targets"),  # instead of what all may, not beside
        (ALICE, forward("[2001:db8::7]:80"), True, "[[policy.rules]] 1 targets"),
        (ALICE, forward("192.0.2.9:1"), True, "[[policy.rules]] 1 targets"),
        (ALICE, forward("203.0.113.5:443", Role.CONS), True, "[policy] peers"),  # left out: as for all
        (BOB, forward("10.1.8.3:5000"), True, "[policy] targets"),
        (BOB, forward("10.2.8.3:5000"), False, "[policy] targets"),
        (BOB, forward("203.0.113.5:443", Role.CONS), False, "[[policy.rules]] 3 peers"),
        (CAROL, forward("203.0.113.5:443", Role.CONS), True, "[policy] peers"),  # the first rule, not the third
        (DAVE, forward("10.1.0.1:1"), True, "[policy] targets"),
        (DAVE, forward("127.0.0.1:22", Role.CONS), False, "[policy] peers"),  # loopback is not meant by everything
        (ALICE, Lease(8 * 3600), True, "[[policy.rules]] 1 max_lease"),
        (ALICE, Lease(8 * 3600 + 1), False, "[[policy.rules]] 1 max_lease"),
        (BOB, Lease(86400), True, "[limits] max_lease"),
        (BOB, Lease(86401), False, "[limits] max_lease"),  # whatever a rule says
        (CAROL, Open(4, Rate.parse("1Gb/s")), True, "[[policy.rules]] 2"),
        (CAROL, Open(5, Rate.parse("1Gb/s")), False, "[[policy.rules]] 2 connections"),
        (CAROL, Open(1, Rate.parse("2Gb/s")), False, "[[policy.rules]] 2 rate"),
        (CAROL, Open(1), False, "[[policy.rules]] 2 rate"),
        (CAROL, Open(1, Rate.parse("1Gb/s"), backend="haproxy"), False, "[[policy.rules]] 2 backends"),
        (CAROL, Open(1, Rate.parse("1Gb/s"), backend="auto"), True, "[[policy.rules]] 2"),
        (CAROL, Open(1, Rate(1), used=Use(1, 1, Rate(1))), False, "[[policy.rules]] 2 sessions"),
        (ALICE, Open(1, lease_s=86400), False, "[[policy.rules]] 1 max_lease"),
        (DAVE, Open(129), False, "[limits] num_conn"),
        (DAVE, Open(128, used=Use(999, 9999)), True, "[policy]"),  # the whole gateway's limits are admission's
    ],
)
def test_decisions(user: Owner, action: Action, allowed: bool, rule: str) -> None:
    decision = decide(SETTINGS, user, action)
    assert (decision.allowed, str(decision.rule)) == (allowed, rule), decision.reason
    if not allowed:
        with pytest.raises(decision.error, match=r"\w"):
            decision.require()


def test_no_rules_is_as_if_there_were_none() -> None:
    settings = Settings.model_validate({"policy": {"targets": ["10.1.0.0/16"]}})
    assert decide(settings, ALICE, forward("10.1.0.1:9")).allowed
    assert not decide(settings, ALICE, forward("10.1.0.1:9", Role.CONS)).allowed
    assert decide(settings, ALICE, Open(128, backend="stunnel", used=Use(500, 5000))).allowed
    assert usual_lease(settings, ALICE) == 3600
    assert decide(settings, ALICE, Lease(8 * 86400)).reason == (
        "a lease of 8d is longer than you get here; ask for at most 7d"
    )
    assert allowed_backends(settings, ALICE) == ()


def test_a_rule_can_name_everybody_or_nobody() -> None:
    rules = [{"users": [], "sessions": 0}, {"groups": []}, {"users": ["*"], "max_lease": "10m"}]
    settings = Settings.model_validate({"policy": {"rules": rules}})
    assert str(decide(settings, DAVE, Open()).rule) == "[[policy.rules]] 3"
    assert usual_lease(settings, DAVE) == 600


@pytest.mark.parametrize(
    ("rules", "hidden"),
    [
        ([{"users": ["*"]}, {"users": ["alice"]}, {"groups": ["tomo"]}], {2: 1, 3: 1}),
        ([{"users": ["alice", "bob"]}, {"users": ["alice"]}, {"users": ["alice", "carol"]}], {2: 1}),
        ([{"users": ["alice"]}, {"users": ["alice"], "groups": ["tomo"]}, {"users": ["*"]}], {}),
        ([{"groups": ["a"]}, {"groups": ["b"]}, {"groups": ["a"]}], {3: 1}),
    ],
)
def test_rules_that_are_nobodys_are_found(rules: list[dict[str, Any]], hidden: dict[int, int]) -> None:
    settings = Settings.model_validate({"policy": {"rules": rules}})
    assert hidden_rules(settings.policy) == hidden
    for number in hidden:
        for name in rules[number - 1].get("users", []):
            assert str(decide(settings, Owner("x", name), Open()).rule) != f"[[policy.rules]] {number}"


NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:a9:fe00::",
    "2002:a9fe:a9fe::1",
    "2001:0:a9fe:a9fe::1",
    "2001:db8::5efe:a9fe:a9fe",
    "::ffff:0:169.254.169.254",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "224.0.0.1",
    "255.255.255.255",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "::ffff:0.0.0.0",
    "64:ff9b::127.0.0.1",
    "2002:7f00:1::",
    "::127.0.0.1",
    "100.100.100.200",
]


@pytest.mark.parametrize("text", NEVER)
@pytest.mark.parametrize("role", Role)
def test_never_whatever_is_allowed(text: str, role: Role) -> None:
    everything = ["0.0.0.0/0", "::/0", "64:ff9b::/96", "127.0.0.0/8", "::1"]
    rules = [{"users": ["alice"], "targets": everything, "peers": everything}]
    settings = Settings.model_validate({"policy": {"targets": everything, "peers": everything, "rules": rules}})
    decision = decide(settings, ALICE, Forward(role, plain(ipaddress.ip_address(text)), 80))
    assert (decision.allowed, str(decision.rule)) == (False, "built in")
    assert "never" in decision.reason


@given(st.ip_addresses(v=4))
def test_an_address_in_another_form_is_as_bad_as_it_is(address: ipaddress.IPv4Address) -> None:
    number = int(address)
    forms = [
        (0x64FF9B << 96) | number,
        (0x2002 << 112) | number << 80 | 1,
        (0x20010000 << 96) | (0xC0000201 << 64) | (number ^ 0xFFFFFFFF),  # Teredo hides the client's
    ]
    for form in map(ipaddress.IPv6Address, forms):
        assert address in set(embedded(form))
        if never(address) or address.is_loopback:
            assert never(form)
    assert plain(ipaddress.IPv6Address((0xFFFF << 32) | number)) == address


@given(st.ip_addresses(), st.integers(1, 65535), st.integers(0, 128), st.integers(1, 65535), st.integers(0, 65535))
def test_a_reach_covers_what_is_in_it_and_no_more(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, prefix: int, first: int, more: int
) -> None:
    address = plain(address)
    bits = min(prefix, address.max_prefixlen)
    network = ipaddress.ip_network(f"{address}/{bits}", strict=False)
    last = min(first + more, 65535)
    text = f"[{network}]:{first}-{last}" if network.version == 6 else f"{network}:{first}-{last}"
    try:
        reach = Reach.parse(text)
    except InvalidArgument:
        assert never(network[0])
        assert never(network[-1])
        return
    if reach.network.version == network.version:
        assert Reach.parse(str(reach)) == reach
        assert reach.covers(address, port) == (first <= port <= last and network.is_loopback >= address.is_loopback)
        for outside in (int(network[0]) - 1, int(network[-1]) + 1):
            if 0 <= outside < 2**address.max_prefixlen:
                assert not reach.covers(type(address)(outside), first)


@pytest.mark.parametrize(
    "text",
    [
        "here",
        "10.0.0.0/33",
        "10.0.0.0/8:",
        "10.0.0.0/8:0",
        "10.0.0.0/8:9-1",
        "10.0.0.0/8:http",
        "[10.0.0.0/8",
        "fe80::/64",
        "169.254.0.0/16",
        "224.0.0.0/4",
        "[::1]:",
        "0.0.0.0/32",
        "::ffff:169.254.1.0/120",
    ],
)
def test_bad_reaches(text: str) -> None:
    with pytest.raises(InvalidArgument):
        Reach.parse(text)


def test_the_gateway_itself_has_to_be_named() -> None:
    own = frozenset({ipaddress.ip_address("10.1.0.5")})
    policy: dict[str, Any] = {"targets": ["10.1.0.0/16"]}
    settings = Settings.model_validate({"server": {"listen": ["10.1.0.5:5000"]}, "policy": policy})
    decision = decide(settings, ALICE, forward("10.1.0.5:22", own=own))
    assert not decision.allowed
    assert "named alone" in decision.reason
    policy["targets"].append("10.1.0.5:8000-8010")
    settings = Settings.model_validate({"server": {"listen": ["10.1.0.5:8001"]}, "policy": policy})
    assert not decide(settings, ALICE, forward("10.1.0.5:22", own=own)).allowed
    assert decide(settings, ALICE, forward("10.1.0.5:8000", own=own)).allowed
    own_port = decide(settings, ALICE, forward("10.1.0.5:8001", own=own))
    assert (own_port.allowed, str(own_port.rule)) == (False, "built in")
    held = decide(settings, ALICE, forward("10.1.0.5:8002", own=own, held=frozenset({8002})))
    assert "somebody else's session" in held.reason


def test_a_control_port_on_all_addresses_is_seen_on_each() -> None:
    settings = Settings.model_validate({"server": {"listen": ["0.0.0.0:5000"]}, "policy": {"targets": ["127.0.0.0/8"]}})
    assert not decide(settings, ALICE, forward("127.0.0.9:5000")).allowed
    assert decide(settings, ALICE, forward("127.0.0.9:5001")).allowed
    assert ipaddress.ip_address("127.0.0.1") in own_addresses()


def test_what_a_running_session_is_is_judged_again() -> None:
    request = Request(Uid("u"), Role.PROD, 2)
    session = open_session("1", BOB, request, 0.0, 60.0, Waits())
    assert objection(SETTINGS, BOB, session) is None
    found = objection(SETTINGS, CAROL, session)
    assert found is not None
    assert str(found.rule) == "[[policy.rules]] 2 rate"


class Names:
    """A resolver that gives the next answer each time, and remembers who was asked for."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return [(0, 0, 0, "", (text, port)) for text in answer.split()]


def a_session() -> Session:
    return open_session("1", BOB, Request(Uid("u"), Role.PROD, 8), 0.0, 60.0, Waits())


async def admit(lookup: Names, *targets: str) -> list[str]:
    endpoints = [Endpoint.parse(text) for text in targets]
    found = await admit_targets(SETTINGS, Resolver(lookup=lookup), BOB, a_session(), Role.PROD, endpoints)
    return [str(x) for x in found]


async def test_a_name_is_looked_up_once_and_its_address_used() -> None:
    names = Names("10.1.0.7", "169.254.169.254")  # the second is never asked for
    assert await admit(names, "daq:1", "daq:2", "10.1.0.9:3", "daq:4") == [
        "10.1.0.7:1",
        "10.1.0.7:2",
        "10.1.0.9:3",
        "10.1.0.7:4",
    ]
    assert names.asked == ["daq"]


async def test_of_a_names_addresses_one_that_is_allowed_is_taken() -> None:
    assert await admit(Names("169.254.169.254 127.0.0.1 ::ffff:10.1.0.8 10.1.0.9"), "daq:1") == ["10.1.0.8:1"]
    for answer in ("169.254.169.254", "127.0.0.1", "::ffff:127.0.0.1", "0.0.0.0", "64:ff9b::a9fe:a9fe"):
        with pytest.raises(PermissionDenied, match="daq:1"):
            await admit(Names(answer), "daq:1")


async def test_a_name_that_is_not_there() -> None:
    with pytest.raises(InvalidArgument, match="does not resolve"):
        await admit(Names(socket.gaierror(-2, "no")), "daq:1")


async def test_names_that_nobody_answers_for_pile_no_threads_up() -> None:
    stuck, before = threading.Event(), threading.active_count()

    def never_answers(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        stuck.wait(60)
        return [(0, 0, 0, "", ("10.1.0.7", port))]

    resolver = Resolver(places=4, timeout_s=0.1, lookup=never_answers)
    for _ in range(5):
        asked = [resolver.addresses(Endpoint(f"n{i}", 1)) for i in range(20)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        assert threading.active_count() <= before + 4
    stuck.set()
    while threading.active_count() > before:
        await asyncio.sleep(0.01)
    assert [str(x) for x in await resolver.addresses(Endpoint("n", 1))] == ["10.1.0.7"]  # places are free again


@pytest.mark.parametrize(
    ("used", "error"), [(Use(1, 0, Rate()), ResourceExhausted), (Use(0, 4, Rate()), ResourceExhausted)]
)
def test_what_is_used_up_is_no_question_of_right(used: Use, error: type[Exception]) -> None:
    with pytest.raises(error):
        decide(SETTINGS, CAROL, Open(1, Rate(1), used=used)).require()


TRUSTING = {"policy": {"trusted_wan": ["198.51.100.0/24"], "rules": [{"groups": ["visitors"], "rate": "1Gb/s"}]}}
AT_ONE_PORT = {**TRUSTING, "network": {"wan_port": 5}}


@pytest.mark.parametrize(
    ("settings", "user", "action", "error", "rule"),
    [
        ({}, ALICE, Datagrams(Role.CONS), PermissionDenied, "[policy] trusted_wan"),
        (AT_ONE_PORT, ALICE, Datagrams(Role.PROD), FailedPrecondition, "[network] wan_port"),
        (AT_ONE_PORT, ALICE, Datagrams(Role.CONS), None, "[policy] trusted_wan"),
        (TRUSTING, CAROL, Datagrams(Role.CONS), PermissionDenied, "[[policy.rules]] 1 rate"),
        (TRUSTING, ALICE, Datagrams(Role.CONS, Rate(1)), InvalidArgument, "built in"),
        (TRUSTING, ALICE, Trust(ipaddress.ip_address("198.51.100.255")), None, "[policy] trusted_wan"),
        (TRUSTING, ALICE, Trust(ipaddress.ip_address("198.51.101.0")), PermissionDenied, "[policy] trusted_wan"),
        (TRUSTING, ALICE, Trust(ipaddress.ip_address("2001:db8::1")), PermissionDenied, "[policy] trusted_wan"),
    ],
)
def test_udp_goes_where_that_is_trusted(
    settings: dict[str, Any], user: Owner, action: Action, error: type[Exception] | None, rule: str
) -> None:
    found = decide(Settings.model_validate(settings), user, action)
    assert (found.allowed, None if found.allowed else found.error, str(found.rule)) == (error is None, error, rule)


def test_a_trusted_network_has_no_ports() -> None:
    with pytest.raises(ValueError, match="whole hosts are meant here"):
        Settings.model_validate({"policy": {"trusted_wan": ["198.51.100.0/24:5000"]}})
