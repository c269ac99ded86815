"""Judges the way of the data: buffers, congestion control, interfaces, ports. Pure functions over readings."""

from __future__ import annotations

from collections.abc import Iterator

from s2cs.doctor.findings import Finding, Level, Need, finding, size
from s2cs.doctor.readings import Link, Readings

_FAR_S = 0.01  # a round trip from which on the choice of congestion control shows
_FAST = 10**10 // 8  # bytes per second from which on an interface needs care
_BUFFER_MAX = 2**31 - 1  # the most that the kernel lets a socket buffer have
_QUEUES = 8  # receive queues, of which more bring no more
_BACKLOG = 4096  # what listeners ask for
_TRACKED_PER_CONNECTION = 2  # a connection comes in and another one goes out


def judge_network(readings: Readings, need: Need) -> Iterator[Finding]:
    """Judge the network of a host."""
    yield from _buffers(readings, need)
    yield from _congestion(readings, need)
    yield from _switches(readings)
    for where in readings.elsewhere:
        why, mend = "no session can be opened", "name an address of this host in [network]; ip addr lists them"
        yield Finding(f"[network] {where}", Level.FAULT, "on no interface", "an address of this host", why, mend)
    for link in readings.links:
        yield from _interface(readings, link)
    yield from _ports(readings, need)
    yield from _conntrack(readings, need)


def _buffers(readings: Readings, need: Need) -> Iterator[Finding]:
    """Half of a buffer is the kernel's own: twice what is on the way has to fit."""
    wanted = min(2 * need.in_flight, _BUFFER_MAX)
    way = f"{need.bandwidth} over {need.rtt_s * 1000:g} ms has {size(need.in_flight)} on the way"
    for name, what in (("tcp_rmem", "receive"), ("tcp_wmem", "send")):
        if not (text := readings.sysctl.get(f"net.ipv4.{name}")):
            continue
        least, first, most = map(int, text.split())
        # An unmeasured wish is no fault of the host.
        short = need.stated and most < need.in_flight
        reached = most / 2 / need.rtt_s * 8 / 1e9
        yield finding(
            f"net.ipv4.{name}",
            f"{most} ({size(most)})",
            f"{wanted} ({size(wanted)}) or more",
            f"{way}, and a buffer holds twice that; one connection can {what} {reached:.2g} Gb/s with this one",
            f'sysctl -w net.ipv4.{name}="{least} {first} {wanted}"',
            well=most >= wanted,
            level=Level.FAULT if short else Level.ADVICE,
        )
    if 2 * need.in_flight > _BUFFER_MAX:
        connections = -(-2 * need.in_flight // _BUFFER_MAX)
        yield Finding(
            "one connection's share",
            Level.FAULT if need.stated else Level.ADVICE,
            f"{size(_BUFFER_MAX / 2)} on the way at most",
            f"{connections} connections or more",
            f"{way}, and no buffer of the kernel holds twice that",
            f"s2uc request --num-conn {connections}, and an application that uses them all; no command mends it",
        )
    for name in ("rmem_max", "wmem_max"):
        if not (text := readings.sysctl.get(f"net.core.{name}")):
            continue
        yield finding(
            f"net.core.{name}",
            f"{text} ({size(int(text))})",
            f"{wanted} ({size(wanted)}) or more",
            "applications that choose their buffers themselves get no larger ones; the proxies leave it to the kernel",
            f"sysctl -w net.core.{name}={wanted}",
            well=int(text) >= wanted,
        )


def _congestion(readings: Readings, need: Need) -> Iterator[Finding]:
    if not (used := readings.sysctl.get("net.ipv4.tcp_congestion_control")):
        return
    there = "bbr" in readings.sysctl.get("net.ipv4.tcp_available_congestion_control", "").split()
    yield finding(
        "net.ipv4.tcp_congestion_control",
        used,
        "bbr",
        "after one lost packet cubic and reno need seconds to be fast again over a long way; bbr hardly slows down",
        ("" if there else "modprobe tcp_bbr && ") + "sysctl -w net.ipv4.tcp_congestion_control=bbr",
        well=used.startswith("bbr") or need.rtt_s < _FAR_S,
    )


def _switches(readings: Readings) -> Iterator[Finding]:
    for name, wanted, why, level in (
        ("tcp_window_scaling", "1", "without it no connection has more than 64 kB on the way", Level.FAULT),
        ("tcp_sack", "1", "without it a lost packet costs all that was sent after it", Level.FAULT),
        ("tcp_timestamps", "1", "without it fast connections mistake old packets for new ones", Level.FAULT),
        ("tcp_slow_start_after_idle", "0", "a stream that paused begins slowly again", Level.ADVICE),
    ):
        if text := readings.sysctl.get(f"net.ipv4.{name}"):
            mend = f"sysctl -w net.ipv4.{name}={wanted}"
            yield finding(
                f"net.ipv4.{name}", text, wanted, why, mend, well=(text == "0") == (wanted == "0"), level=level
            )
    large = any(link.mtu > 1500 and not link.loopback for link in readings.links)
    if large and (text := readings.sysctl.get("net.ipv4.tcp_mtu_probing")):
        yield finding(
            "net.ipv4.tcp_mtu_probing",
            text,
            "1",
            "where the way has a smaller MTU and swallows the word of it, connections hang",
            "sysctl -w net.ipv4.tcp_mtu_probing=1",
            well=text != "0",
        )
    if text := readings.sysctl.get("net.core.somaxconn"):
        yield finding(
            "net.core.somaxconn",
            text,
            f"{_BACKLOG} or more",
            "so many connections wait while a proxy starts; more are turned away",
            f"sysctl -w net.core.somaxconn={_BACKLOG}",
            well=int(text) >= _BACKLOG,
        )


def _interface(readings: Readings, link: Link) -> Iterator[Finding]:
    name = f"{link.name} ({link.network})"
    if link.loopback:
        why = "[network] names loopback: good for trying out; other hosts cannot reach it"
        yield Finding(name, Level.OK, "loopback", why=why)
        return
    if link.speed:
        yield Finding(f"{name} speed", Level.OK, f"{link.speed * 8 / 1e9:g} Gb/s")
    fast = link.speed >= _FAST
    yield finding(
        f"{name} MTU",
        link.mtu,
        "9000" if fast else "1500 or more",
        "six times fewer packets, where every switch on the way takes them: ping -M do -s 8972 HOST tells",
        f"ip link set dev {link.name} mtu 9000",
        well=link.mtu >= (9000 if fast else 1500),
    )
    if link.qdisc:
        # A card with several queues has one discipline for each, of the default kind.
        used = readings.sysctl.get("net.core.default_qdisc", "") if link.qdisc == "mq" else link.qdisc
        yield finding(
            f"{name} queueing",
            f"mq of {used}" if link.qdisc == "mq" else used,
            "fq",
            "it spreads bursts and paces what has a rate; else TCP does, with a timer for each connection",
            f"sysctl -w net.core.default_qdisc=fq && tc qdisc replace dev {link.name} root "
            + ("mq" if link.qdisc == "mq" else "fq"),
            well=used in ("fq", "noqueue"),
        )
    wanted = min(readings.cpus, _QUEUES)
    if link.queues and fast:
        yield finding(
            f"{name} receive queues",
            link.queues,
            f"{wanted} or more",
            "one queue is served by one processor, which then is the limit",
            f"ethtool -L {link.name} combined {wanted}",
            well=link.queues >= wanted,
        )
    if link.interrupts > 1:
        yield finding(
            f"{name} interrupts",
            f"{link.interrupts} on {link.interrupt_cpus} of {readings.cpus} processors",
            "on several processors",
            "one processor for all interrupts is the limit of the interface",
            "systemctl enable --now irqbalance",
            well=link.interrupt_cpus > 1 or readings.cpus == 1,
        )


def _ports(readings: Readings, need: Need) -> Iterator[Finding]:
    if not (text := readings.sysctl.get("net.ipv4.ip_local_port_range")):
        return
    low, high = map(int, text.split())
    kept = readings.sysctl.get("net.ipv4.ip_local_reserved_ports", "")
    overlap = need.ports.first <= high and low <= need.ports.last and str(need.ports) not in kept.split(",")
    yield finding(
        "net.ipv4.ip_local_port_range",
        f"{low}-{high}",
        f"beside {need.ports} of [network] ports",
        "what the kernel gives to an outgoing connection cannot be reserved for a session",
        f"sysctl -w net.ipv4.ip_local_reserved_ports={','.join(filter(None, [kept, str(need.ports)]))}",
        well=not overlap,
    )


def _conntrack(readings: Readings, need: Need) -> Iterator[Finding]:
    if not (text := readings.sysctl.get("net.netfilter.nf_conntrack_max")):
        return
    most, used = int(text), int(readings.sysctl.get("net.netfilter.nf_conntrack_count") or 0)
    wanted = 2 * (used + _TRACKED_PER_CONNECTION * need.connections)
    yield finding(
        "net.netfilter.nf_conntrack_max",
        f"{most}, {used} in use",
        f"{wanted} or more",
        "the firewall drops new connections when its table is full",
        f"sysctl -w net.netfilter.nf_conntrack_max={wanted}",
        well=most >= wanted,
        level=Level.FAULT if used > 0.9 * most else Level.ADVICE,
    )
