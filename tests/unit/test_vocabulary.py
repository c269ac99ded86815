"""The words of the protocol: what is read, what is refused, and that refusals are printable."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, Rate, Role, Uid, duration, parse_duration, parse_endpoints, shown

HOSTILE = [
    "",
    " ",
    "\n",
    "\0",
    "../../etc/passwd",
    "a b",
    "a\nexec = /bin/sh",
    "{{ 7 * 7 }}",
    "${HOME}",
    "$(id)",
    "a;b",
    "a/b",
    "é",
    "\uff11",  # a digit to str.isdigit(), not to us
    "x" * 10_000,
]

# uid


@pytest.mark.parametrize("text", ["1", "a", "A-1", "x" * 63, "123e4567-e89b-12d3-a456-426614174000"])
def test_uid(text: str) -> None:
    assert Uid(text) == text


@pytest.mark.parametrize("text", [*HOSTILE, "-a", "x" * 64, "a_b", "a.b", "a\n"])
def test_no_uid(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"uid .* is not 1 to 63 letters") as caught:
        Uid(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200


# role


def test_role() -> None:
    assert (Role.parse("PROD"), Role.parse("CONS")) == (Role.PROD, Role.CONS)
    assert (Role.PROD.peer, Role.CONS.peer) == (Role.CONS, Role.PROD)


@pytest.mark.parametrize("text", [*HOSTILE, "prod", "PROD ", "BOTH"])
def test_no_role(text: str) -> None:
    with pytest.raises(InvalidArgument, match="use PROD or CONS"):
        Role.parse(text)


# endpoint


@pytest.mark.parametrize(
    ("text", "host", "port", "ip"),
    [
        ("127.0.0.1:1", "127.0.0.1", 1, "127.0.0.1"),
        ("[::1]:65535", "::1", 65535, "::1"),
        ("[0:0:0:0:0:0:0:1]:5000", "::1", 5000, "::1"),
        ("gw-1.example.org:5000", "gw-1.example.org", 5000, None),
        ("gw.example.org.:5000", "gw.example.org.", 5000, None),
        ("node_7:5000", "node_7", 5000, None),
        ("localhost:05000", "localhost", 5000, None),
    ],
)
def test_endpoint(text: str, host: str, port: int, ip: str | None) -> None:
    endpoint = Endpoint.parse(text)
    assert (str(endpoint.ip) if endpoint.ip else None) == ip
    assert endpoint.port == port
    assert endpoint == Endpoint(host, port)
    assert Endpoint.parse(str(endpoint)) == endpoint


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        *(f"{host}:5000" for host in HOSTILE),
        *(f"127.0.0.1:{port}" for port in ["", "0", "65536", "99999999", "-1", "+1", "abc", "1 ", "1\n", "\uff11"]),
        "127.0.0.1",
        "::1:5000",
        "[::1]",
        "[::1:5000",
        "[127.0.0.1]:5000",
        "[name]:5000",
        "[fe80::1%eth0]:5000",
        "[fe80::1%e;x]:5000",
        "127.1:5000",
        "1:5000",
        "256.0.0.1:5000",
        "a..b:5000",
        "-a:5000",
        "a-:5000",
        "x" * 64 + ":5000",
        ".".join(["x" * 60] * 5) + ":5000",
        "127.0.0.1:1\n[x]\nexec=/bin/sh",
        "http://host:80",
        "user@host:80",
    ],
)
def test_no_endpoint(text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Endpoint.parse(text)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


@given(st.text(max_size=40), st.integers())
def test_an_endpoint_is_safe_to_print_anywhere(host: str, port: int) -> None:
    try:
        text = str(Endpoint(host, port))
    except InvalidArgument:
        return
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]")
    assert Endpoint.parse(text).port == port


@given(st.ip_addresses(), st.integers(1, 65535))
def test_every_address_can_be_an_endpoint(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    host = str(ip)
    endpoint = Endpoint.parse(f"[{host}]:{port}" if ip.version == 6 else f"{host}:{port}")
    assert endpoint.ip == ip


def test_endpoints_keep_their_order() -> None:
    assert [e.port for e in parse_endpoints(["a:3", "a:1", "a:2"])] == [3, 1, 2]


# port range


def test_port_range() -> None:
    ports = PortRange.parse("30000-30999")
    assert (ports.first, ports.last, len(ports), str(ports)) == (30000, 30999, 1000, "30000-30999")
    assert len(PortRange.parse("1-1")) == 1


@pytest.mark.parametrize("text", [*HOSTILE, "1", "1-", "-1", "0-5", "5-4", "1-65536", "1-2-3", "1-2\n"])
def test_no_port_range(text: str) -> None:
    with pytest.raises(InvalidArgument, match="port range"):
        PortRange.parse(text)


# rate


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "said"),
    [
        ("0", 0, "unlimited"),
        ("1", 1000, "8 kb/s"),
        ("1.5", 1500, "12 kb/s"),
        ("10Gb/s", 1_250_000_000, "10 Gb/s"),
        (" 1.25 GB/s ", 1_250_000_000, "10 Gb/s"),
        ("1Mbit/s", 125_000, "1 Mb/s"),
        ("8b/s", 1, "8 b/s"),
        ("1TB/s", 10**12, "8 Tb/s"),
    ],
)
def test_rate(text: str, bytes_per_s: int, said: str) -> None:
    assert Rate.parse(text) == Rate(bytes_per_s)
    assert str(Rate(bytes_per_s)) == said


@pytest.mark.parametrize(
    "text", [*HOSTILE, "-1", "fast", "1 gb/s", "1e9", "1Gb", "inf", "nan", "10000000000TB/s", "9" * 400]
)
def test_no_rate(text: str) -> None:
    with pytest.raises(InvalidArgument, match="rate"):
        Rate.parse(text)


@pytest.mark.parametrize(
    ("kb", "fine", "bytes_per_s"), [(0, 0, 0), (5, 0, 5000), (0, 7, 7), (1, 7, 7), (5, 4001, 4001), (5, 5999, 5999)]
)
def test_rate_from_the_wires_two_fields(kb: int, fine: int, bytes_per_s: int) -> None:
    assert Rate.from_wire(kb, fine) == Rate(bytes_per_s)


@pytest.mark.parametrize(("kb", "fine"), [(-1, 0), (1, 2000), (2**31 - 1, 1), (0, 2**64 - 1), (0, -1)])
def test_no_rate_from_the_wire(kb: int, fine: int) -> None:
    with pytest.raises(InvalidArgument, match="rate"):
        Rate.from_wire(kb, fine)


@given(st.integers(0, 2**53 - 1))
def test_a_rate_survives_the_wire(bytes_per_s: int) -> None:
    rate = Rate(bytes_per_s)
    assert 0 <= rate.kb_per_s < 2**31
    assert bool(rate.kb_per_s) == bool(bytes_per_s)
    if bytes_per_s < 1000 * (2**31 - 1):
        assert Rate.from_wire(rate.kb_per_s, bytes_per_s) == rate


# duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("15m", 900), ("15 min", 900), ("2h", 7200), ("1.5h", 5400), ("1d", 86400)],
)
def test_duration(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(duration(seconds)) == seconds


def test_a_duration_is_written_as_people_write_it() -> None:
    assert [duration(seconds) for seconds in (90, 900, 5400, 7200, 86400, 86401)] == [
        "90s",
        "15m",
        "90m",
        "2h",
        "1d",
        "86401s",
    ]


@pytest.mark.parametrize("text", [*HOSTILE, "0", "0.2s", "-1s", "1w", "1e3", "forever", "9" * 400])
def test_no_duration(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"duration .* is not a time"):
        parse_duration(text)


# messages


@given(st.text() | st.binary() | st.integers())
def test_what_is_shown_is_short_and_printable(value: object) -> None:
    text = shown(value)
    assert len(text) <= 60
    assert text.isascii()
    assert text.isprintable()
