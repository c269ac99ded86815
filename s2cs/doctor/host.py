"""Judges the machine: processors, kernel, limits, clock, proxies. Pure functions over readings."""

from __future__ import annotations

import re
from collections.abc import Iterator

from s2cs.doctor.findings import Finding, Level, Need, finding
from s2cs.doctor.readings import Proxy, Readings

_CPU_S_PER_GB = 1.1  # of one gateway: half of what two took together for TLS 1.3 with AES-128-GCM
_KERNEL = (5, 6)  # pidfd_getfd
_DESCRIPTORS_PER_SESSION, _DESCRIPTORS_KEPT = 8, 64
_OPENSSL = {  # what is known of releases before
    (3, 0): "its makers mend no fault of it any more",
    (3, 2): "threads of one process wait for each other at handshakes; streams are as fast as with later ones",
}


def judge_host(readings: Readings, need: Need) -> Iterator[Finding]:
    """Judge all of a host but its network."""
    yield from _processors(readings, need)
    yield from _kernel(readings)
    yield from _limits(readings, need)
    if readings.lacking:
        value, _, mend = readings.lacking.partition("; ")
        mend = mend or "choose another [s2ds] launcher"
        yield Finding(
            "launcher", Level.FAULT, value, "one that can run proxies", "without it nothing carries data", mend
        )
    elif not readings.proxies:
        why, mend = "without a proxy there is nothing that carries data", "apt-get install nginx libnginx-mod-stream"
        yield Finding("proxies", Level.FAULT, "none", "nginx, haproxy or stunnel", why, mend)
    for proxy in readings.proxies:
        yield from _proxy(proxy)


def _processors(readings: Readings, need: Need) -> Iterator[Finding]:
    wanted = max(1, round(need.bandwidth.bytes_per_s / 1e9 * _CPU_S_PER_GB + 0.499))
    yield finding(
        "processors",
        readings.cpus,
        f"{wanted} or more",
        f"a gateway needs about {_CPU_S_PER_GB} seconds of a processor for each GB that it encrypts",
        "spread the sessions over more gateways, or a larger machine; no command mends it",
        well=readings.cpus >= wanted,
    )
    flags = readings.cpu_flags
    if flags:
        aes = [name for name in ("aes", "vaes", "avx512f") if name in flags]
        yield finding(
            "AES instructions",
            ", ".join(aes) or "none",
            "aes; vaes is faster yet",
            "without them encryption is the limit, and ChaCha20 the faster cipher, which is then preferred",
            "use a machine that has them, or let the hypervisor pass them on (CPU model host); no command mends it",
            well="aes" in flags,
        )
    if readings.governors:
        yield finding(
            "CPU frequency governor",
            ", ".join(sorted(readings.governors)),
            "performance",
            "other governors slow processors down between bursts, which costs rate and delay",
            "cpupower frequency-set -g performance",
            well=readings.governors == {"performance"},
        )


def _kernel(readings: Readings) -> Iterator[Finding]:
    numbers = tuple(map(int, re.findall(r"\d+", readings.kernel)[:2]))
    yield finding(
        "kernel",
        readings.kernel,
        ".".join(map(str, _KERNEL)) + " or later",
        "S2CS takes listening sockets back out of living proxies with pidfd_getfd",
        "apt-get install --only-upgrade linux-image-amd64 && reboot",
        well=numbers >= _KERNEL,
        level=Level.FAULT,
    )
    if scope := readings.sysctl.get("kernel.yama.ptrace_scope"):
        yield finding(
            "kernel.yama.ptrace_scope",
            scope,
            "0",
            "a restarted S2CS must look into the proxies that lived on, or ports are bound anew when one dies, and "
            "HAProxy and Stunnel keep no rate towards the producer",
            "systemctl edit s2cs, with AmbientCapabilities=CAP_SYS_PTRACE under [Service]; or, for all users: "
            "sysctl -w kernel.yama.ptrace_scope=0",
            well=scope == "0",
        )
    loaded = "tls" in readings.sysctl.get("net.ipv4.tcp_available_ulp", "").split()
    value = "loaded" if loaded else "not loaded" if readings.tls_module else "not in this kernel"
    yield Finding("kernel TLS", Level.OK, value, why="the proxies encrypt by themselves and are not told to use it")
    yield finding(
        "Landlock",
        f"version {readings.landlock}" if readings.landlock else "none",
        "version 1 or later",
        "with it a proxy can open no file but its own",
        "put landlock first into lsm= of GRUB_CMDLINE_LINUX in /etc/default/grub && update-grub && reboot",
        well=readings.landlock > 0,
    )


def _limits(readings: Readings, need: Need) -> Iterator[Finding]:
    wanted = need.connections + _DESCRIPTORS_PER_SESSION * need.sessions + _DESCRIPTORS_KEPT
    yield finding(
        "descriptors",
        readings.descriptors or "unlimited",
        f"{wanted} or more",
        "S2CS holds each listener of the [limits] open; sessions are refused when it can hold no more",
        f"systemctl edit s2cs, with LimitNOFILE={wanted} under [Service]; in a shell: ulimit -n {wanted}",
        well=not readings.descriptors or readings.descriptors >= wanted,
    )
    yield finding(
        "clock",
        "synchronised" if readings.clock_synchronised else "not synchronised",
        "synchronised",
        "certificates live as long as a lease: a clock that is minutes off finds them not yet or no longer valid",
        "apt-get install chrony (or: timedatectl set-ntp true)",
        well=readings.clock_synchronised,
    )
    yield finding(
        "keys of sessions",
        f"{readings.keys} in memory" if readings.keys_in_memory else f"{readings.keys} on a disk",
        "in memory",
        "what is in memory is gone with the machine's power, and on no disk that is sold",
        "mount -t tmpfs -o mode=0755,nosuid,nodev tmpfs /run (systemd does), "
        "or name a directory on a tmpfs as [server] runtime_dir",
        well=readings.keys_in_memory,
    )


def _proxy(proxy: Proxy) -> Iterator[Finding]:
    yield finding(
        proxy.name,
        f"{proxy.version} ({proxy.program})",
        "a version without known faults",
        proxy.caution,
        f"install a later {proxy.name}, or name another [s2ds] backend",
        well=not proxy.caution,
    )
    release = tuple(map(int, re.findall(r"\d+", proxy.openssl)[:2]))
    for before, why in _OPENSSL.items():
        if release and release < before:
            target = ".".join(map(str, before)) + " or later"
            level = Level.ADVICE if before == (3, 0) else Level.OK
            mend = f"install a {proxy.name} that is built with a later OpenSSL"
            yield finding(f"{proxy.name}'s OpenSSL", proxy.openssl, target, why, mend, well=level is Level.OK)
            break
