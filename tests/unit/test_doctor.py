"""The doctor's judgement of hosts that are not this one."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from s2cs.doctor import Finding, Level, Need, Readings, judge, read
from s2cs.doctor import readings as readings_module
from s2cs.doctor.readings import SYSCTLS, Link, Proxy, openssl_of
from s2cs.s2ds.backends import BACKENDS
from scistream.vocabulary import PortRange, Rate

NEED = Need(Rate.parse("100Gb/s"), 0.05, stated=True, connections=10_000, sessions=1000, ports=PortRange(30000, 30999))
LAPTOP = Need(Rate.parse("1Gb/s"), 0.001, stated=False, connections=100, sessions=10, ports=PortRange(30000, 30999))
NGINX = Proxy("nginx", "1.28.0", "/usr/sbin/nginx", openssl="3.5.1")
CARD = Link("ens1f0", "wan", mtu=9000, speed=12_500_000_000, qdisc="mq", queues=16, interrupts=16, interrupt_cpus=16)
TUNED = Readings(  # a data transfer node that its engineer has prepared
    kernel="6.12.0-124.el10.x86_64",
    sysctl={
        "kernel.yama.ptrace_scope": "0",
        "net.core.default_qdisc": "fq",
        "net.core.rmem_max": "2147483647",
        "net.core.somaxconn": "4096",
        "net.core.wmem_max": "2147483647",
        "net.ipv4.ip_local_port_range": "32768\t60999",
        "net.ipv4.tcp_available_congestion_control": "reno cubic bbr",
        "net.ipv4.tcp_congestion_control": "bbr",
        "net.ipv4.tcp_mtu_probing": "1",
        "net.ipv4.tcp_rmem": "4096\t131072\t2147483647",
        "net.ipv4.tcp_sack": "1",
        "net.ipv4.tcp_slow_start_after_idle": "0",
        "net.ipv4.tcp_timestamps": "1",
        "net.ipv4.tcp_window_scaling": "1",
        "net.ipv4.tcp_wmem": "4096\t65536\t2147483647",
        "net.netfilter.nf_conntrack_count": "12",
        "net.netfilter.nf_conntrack_max": "262144",
    },
    links=(CARD, Link("ens2f0", "lan", mtu=9000, speed=12_500_000_000, qdisc="fq", queues=16)),
    cpus=32,
    cpu_flags=frozenset({"aes", "vaes", "avx512f"}),
    governors=frozenset({"performance"}),
    tls_module=True,
    descriptors=1_048_576,
    keys="/run/scistream-1",
    landlock=4,
    proxies=(NGINX,),
)


def with_sysctl(**changes: str) -> Readings:
    """The tuned host with other settings of the kernel: `net__core__somaxconn` is net.core.somaxconn."""
    return replace(TUNED, sysctl={**TUNED.sysctl, **{name.replace("__", "."): text for name, text in changes.items()}})


def not_well(readings: Readings, need: Need = NEED) -> list[Finding]:
    return [finding for finding in judge(readings, need) if finding.level is not Level.OK]


def test_a_tuned_host_gets_no_advice() -> None:
    assert not_well(TUNED) == []
    assert len(judge(TUNED, NEED)) > 20


@pytest.mark.parametrize(
    ("readings", "name", "level", "mend"),
    [
        (
            with_sysctl(net__ipv4__tcp_rmem="4096 131072 6291456"),
            "net.ipv4.tcp_rmem",
            Level.FAULT,
            'sysctl -w net.ipv4.tcp_rmem="4096 131072 1250000000"',
        ),
        (
            with_sysctl(net__ipv4__tcp_wmem="4096 16384 1000000000"),  # holds what is on the way, and not twice that
            "net.ipv4.tcp_wmem",
            Level.ADVICE,
            'sysctl -w net.ipv4.tcp_wmem="4096 16384 1250000000"',
        ),
        (
            with_sysctl(net__core__rmem_max="212992"),
            "net.core.rmem_max",
            Level.ADVICE,
            "sysctl -w net.core.rmem_max=1250000000",
        ),
        (
            with_sysctl(
                net__ipv4__tcp_congestion_control="cubic", net__ipv4__tcp_available_congestion_control="reno cubic"
            ),
            "net.ipv4.tcp_congestion_control",
            Level.ADVICE,
            "modprobe tcp_bbr && sysctl -w net.ipv4.tcp_congestion_control=bbr",
        ),
        (
            with_sysctl(net__ipv4__tcp_window_scaling="0"),
            "net.ipv4.tcp_window_scaling",
            Level.FAULT,
            "sysctl -w net.ipv4.tcp_window_scaling=1",
        ),
        (
            with_sysctl(net__ipv4__tcp_slow_start_after_idle="1"),
            "net.ipv4.tcp_slow_start_after_idle",
            Level.ADVICE,
            "sysctl -w net.ipv4.tcp_slow_start_after_idle=0",
        ),
        (
            with_sysctl(net__core__somaxconn="128"),
            "net.core.somaxconn",
            Level.ADVICE,
            "sysctl -w net.core.somaxconn=4096",
        ),
        (
            replace(TUNED, links=(replace(CARD, mtu=1500),)),
            "ens1f0 (wan) MTU",
            Level.ADVICE,
            "ip link set dev ens1f0 mtu 9000",
        ),
        (
            with_sysctl(net__ipv4__tcp_mtu_probing="0"),
            "net.ipv4.tcp_mtu_probing",
            Level.ADVICE,
            "sysctl -w net.ipv4.tcp_mtu_probing=1",
        ),
        (
            with_sysctl(net__core__default_qdisc="fq_codel"),
            "ens1f0 (wan) queueing",
            Level.ADVICE,
            "sysctl -w net.core.default_qdisc=fq && tc qdisc replace dev ens1f0 root mq",
        ),
        (
            replace(TUNED, links=(replace(CARD, queues=1, interrupts=0),)),
            "ens1f0 (wan) receive queues",
            Level.ADVICE,
            "ethtool -L ens1f0 combined 8",
        ),
        (
            replace(TUNED, links=(replace(CARD, interrupt_cpus=1),)),
            "ens1f0 (wan) interrupts",
            Level.ADVICE,
            "systemctl enable --now irqbalance",
        ),
        (
            with_sysctl(net__ipv4__ip_local_port_range="20000 60999", net__ipv4__ip_local_reserved_ports="25000"),
            "net.ipv4.ip_local_port_range",
            Level.ADVICE,
            "sysctl -w net.ipv4.ip_local_reserved_ports=25000,30000-30999",
        ),
        (
            with_sysctl(net__netfilter__nf_conntrack_max="16384"),
            "net.netfilter.nf_conntrack_max",
            Level.ADVICE,
            "sysctl -w net.netfilter.nf_conntrack_max=40024",
        ),
        (
            with_sysctl(net__netfilter__nf_conntrack_count="262000"),
            "net.netfilter.nf_conntrack_max",
            Level.FAULT,
            "sysctl -w net.netfilter.nf_conntrack_max=564000",
        ),
        (replace(TUNED, cpus=4), "processors", Level.ADVICE, "spread the sessions"),
        (replace(TUNED, cpu_flags=frozenset({"sse2"})), "AES instructions", Level.ADVICE, "no command mends it"),
        (
            replace(TUNED, governors=frozenset({"powersave", "performance"})),
            "CPU frequency governor",
            Level.ADVICE,
            "cpupower frequency-set -g performance",
        ),
        (replace(TUNED, kernel="4.18.0-553.el8_10.x86_64"), "kernel", Level.FAULT, "apt-get install"),
        (
            with_sysctl(kernel__yama__ptrace_scope="1"),
            "kernel.yama.ptrace_scope",
            Level.ADVICE,
            "AmbientCapabilities=CAP_SYS_PTRACE",
        ),
        (replace(TUNED, landlock=0), "Landlock", Level.ADVICE, "update-grub"),
        (replace(TUNED, descriptors=4096), "descriptors", Level.ADVICE, "LimitNOFILE=18064"),
        (replace(TUNED, clock_synchronised=False), "clock", Level.ADVICE, "chrony"),
        (replace(TUNED, keys_in_memory=False), "keys of sessions", Level.ADVICE, "[server] runtime_dir"),
        (
            replace(TUNED, proxies=(), lacking="docker: image x is not there; build it: docker build"),
            "launcher",
            Level.FAULT,
            "build it: docker build",
        ),
        (replace(TUNED, proxies=()), "proxies", Level.FAULT, "apt-get install nginx libnginx-mod-stream"),
        (
            replace(TUNED, proxies=(Proxy("stunnel", "5.68", "/usr/bin/stunnel", caution="may miss the end"),)),
            "stunnel",
            Level.ADVICE,
            "later stunnel",
        ),
        (
            replace(TUNED, proxies=(replace(NGINX, openssl="1.1.1w"),)),
            "nginx's OpenSSL",
            Level.ADVICE,
            "later OpenSSL",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and "=" not in value and " " not in value else "",
)
def test_one_thing_amiss_is_one_finding_with_its_mend(readings: Readings, name: str, level: Level, mend: str) -> None:
    (found,) = not_well(readings)
    assert (found.name, found.level) == (name, level)
    assert mend in found.mend
    assert found.value
    assert found.target
    assert found.why


def test_what_nobody_asked_for_is_no_fault() -> None:
    slow = with_sysctl(net__ipv4__tcp_rmem="4096 131072 6291456")
    assert [finding.level for finding in not_well(slow, replace(NEED, stated=False))] == [Level.ADVICE]


def test_a_short_way_needs_neither_large_buffers_nor_bbr() -> None:
    plain = with_sysctl(
        net__ipv4__tcp_rmem="4096 131072 6291456",
        net__ipv4__tcp_wmem="4096 16384 4194304",
        net__core__rmem_max="4194304",
        net__core__wmem_max="4194304",
        net__ipv4__tcp_congestion_control="cubic",
    )
    assert not_well(plain, LAPTOP) == []


def test_nothing_can_have_more_than_the_kernel_gives() -> None:
    far = replace(NEED, bandwidth=Rate.parse("400Gb/s"), rtt_s=0.2)
    asked = [f.mend for f in not_well(with_sysctl(net__ipv4__tcp_rmem="4096 131072 1"), far) if "tcp_rmem" in f.name]
    assert asked == ['sysctl -w net.ipv4.tcp_rmem="4096 131072 2147483647"']
    (share,) = not_well(replace(TUNED, cpus=100), far)  # ten gigabytes on the way
    assert (share.level, share.target) == (Level.FAULT, "10 connections or more")
    assert not_well(replace(TUNED, cpus=100), replace(far, stated=False))[0].level is Level.ADVICE


def test_a_host_that_tells_nothing_is_still_judged() -> None:
    """As in a container without /proc/sys, on loopback."""
    blind = Readings(kernel="6.1.0", cpus=32, landlock=1, proxies=(NGINX,), links=(Link("lo", "wan and lan", True),))
    assert not_well(blind) == []


def test_what_is_set_outside_of_a_container_is_said_to_be() -> None:
    inside = replace(
        with_sysctl(net__core__somaxconn="128", net__ipv4__tcp_congestion_control="cubic"), sysctl_fixed=True
    )
    assert [f.mend.split(":")[0] for f in not_well(replace(inside, cpus=1)) if "processor" not in f.name] == [
        "outside of this container, where /proc/sys can be written"
    ] * 2


def test_an_address_of_another_host_is_a_fault() -> None:
    (found,) = not_well(replace(TUNED, elsewhere=("wan = 192.0.2.1",)))
    assert (found.name, found.level) == ("[network] wan = 192.0.2.1", Level.FAULT)


# Reading hosts that are odd


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory of a host, with nothing in it, in place of this one's."""
    for name, place in (
        ("_SYSCTL", "proc/sys"),
        ("_NET", "sys/class/net"),
        ("_CGROUPS", "cgroup"),
        ("_CGROUP", "self"),
    ):
        monkeypatch.setattr(readings_module, name, tmp_path / place)
    return tmp_path


def here(host: Path, lan: str = "127.0.0.1", wan: str = "127.0.0.1") -> Readings:
    return read(lan, wan, host)


def test_a_host_without_proc_and_sys(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(psutil, "net_if_addrs", refused)
    found = here(host)
    assert (found.sysctl, found.links, found.sysctl_fixed, found.elsewhere) == ({}, (), False, ())
    assert judge(found, NEED)


@pytest.mark.parametrize(
    "text", ["", "max", "1 2", "1 2 3 4", "-1 -1 -1", "nan nan nan", "9" * 5000, "\x1b[2J", "4096 1\0 2"]
)
def test_what_no_kernel_says_counts_as_not_told(host: Path, text: str) -> None:
    for name in SYSCTLS:
        file = host / "proc/sys" / name.replace(".", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text.encode() + b"\xff\n")
    found = here(host)
    assert found.sysctl == {}
    for name in SYSCTLS:
        (host / "proc/sys" / name.replace(".", "/")).write_text(text)
    assert all(each.value.isprintable() for each in judge(here(host), NEED) if "tcp_" in each.name)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 64),
        ({"a/cpu.max": "max 100000"}, 64),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "800000 100000", "a/b/cpu.max": "250000 100000"}, 2),
        ({"a/b/cpu.max": "50000 100000"}, 1),
        ({"a/b/cpu.max": "1 0", "a/cpu.max": "rubbish"}, 64),
    ],
)
def test_a_container_has_the_processors_that_it_was_given(
    host: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    (host / "self").write_text("12:pids:/x\n0::/a/b\n")
    for name, text in files.items():
        file = host / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    assert here(host).cpus == cpus


def test_an_address_that_is_not_this_hosts_is_seen(host: Path) -> None:
    assert here(host, "127.0.0.2", "::1").elsewhere in ((), ("wan = ::1",))  # the whole of 127.0.0.0/8 is every host's
    assert here(host, "0.0.0.0", "192.0.2.77").elsewhere == ("wan = 192.0.2.77",)


@pytest.mark.parametrize("version", ["1.28\x1b[2J", "9" * 5000, "1." * 500, "", "none"])
def test_a_proxy_that_names_no_sane_version_is_not_used(tmp_path: Path, version: str) -> None:
    program = tmp_path / "nginx"
    program.write_text(
        f"#!/bin/sh\nprintf 'nginx version: nginx/{version} --with-stream --with-stream_ssl_module\\n'\n"
    )
    program.chmod(0o755)
    found = BACKENDS["nginx"].find(program)
    assert "does not tell its version" in found.reason
    assert (found.reason.isprintable(), found.version) == (True, "")


@pytest.mark.parametrize("said", ["OpenSSL " + "9" * 5000 + ".1.1", "OpenSSL 3.x", "\xff\xfe"])
def test_a_proxy_whose_openssl_is_no_release(tmp_path: Path, said: str) -> None:
    program = tmp_path / "proxy"
    program.write_text(f"#!/bin/sh\nprintf '%s\\n' '{said}'\n", encoding="latin-1")
    program.chmod(0o755)
    assert openssl_of(program) == ""
