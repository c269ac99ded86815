"""What the doctor reads of a host. Nothing here judges, and nothing is changed; what cannot be read is empty."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from s2cs.runtime import in_memory
from s2cs.s2ds.landlock import abi

_SYSCTL = Path("/proc/sys")
_NET = Path("/sys/class/net")
_CGROUP, _CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_NUMBER, _WORDS = r"\d{1,19}", r"[\w ,-]*"
_TWO, _THREE = rf"{_NUMBER}\s+{_NUMBER}", rf"{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}"
SYSCTLS = {  # and what a kernel says: anything else, as in places that only look like Linux, counts as not told
    "kernel.yama.ptrace_scope": _NUMBER,
    "net.core.default_qdisc": _WORDS,
    "net.core.rmem_max": _NUMBER,
    "net.core.somaxconn": _NUMBER,
    "net.core.wmem_max": _NUMBER,
    "net.ipv4.ip_local_port_range": _TWO,
    "net.ipv4.ip_local_reserved_ports": _WORDS,
    "net.ipv4.tcp_available_congestion_control": _WORDS,
    "net.ipv4.tcp_available_ulp": _WORDS,
    "net.ipv4.tcp_congestion_control": _WORDS,
    "net.ipv4.tcp_mtu_probing": _NUMBER,
    "net.ipv4.tcp_rmem": _THREE,
    "net.ipv4.tcp_sack": _NUMBER,
    "net.ipv4.tcp_slow_start_after_idle": _NUMBER,
    "net.ipv4.tcp_timestamps": _NUMBER,
    "net.ipv4.tcp_window_scaling": _NUMBER,
    "net.ipv4.tcp_wmem": _THREE,
    "net.netfilter.nf_conntrack_count": _NUMBER,
    "net.netfilter.nf_conntrack_max": _NUMBER,
}
_ADJTIME_UNSYNCHRONISED = 0x40


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface of the gateway."""

    name: str
    network: str  # "wan", "lan", or both
    loopback: bool = False
    mtu: int = 0
    speed: int = 0  # bytes per second; 0 where it is not told, as in virtual machines
    qdisc: str = ""
    queues: int = 0  # for receiving
    interrupts: int = 0
    interrupt_cpus: int = 0  # that its interrupts go to


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is installed, on this host or in the image of its containers."""

    name: str
    version: str
    program: str
    openssl: str = ""  # the release it runs with, where it tells
    caution: str = ""  # a fault that its backend knows of


@dataclass(frozen=True, slots=True)
class Readings:
    """A host as it is."""

    kernel: str = ""
    sysctl: Mapping[str, str] = field(default_factory=dict)
    sysctl_fixed: bool = False  # as in most containers: they are set outside
    links: tuple[Link, ...] = ()
    elsewhere: tuple[str, ...] = ()  # settings that name an address of another host
    cpus: int = 1  # that this process may use
    cpu_flags: frozenset[str] = frozenset()
    governors: frozenset[str] = frozenset()  # empty where the system does not tell
    tls_module: bool = False  # the kernel's TLS could be loaded
    descriptors: int = 0  # hard limit; 0 is none
    clock_synchronised: bool = True
    keys: str = ""  # the directory that keys of sessions are in
    keys_in_memory: bool = True
    landlock: int = 0  # version of its interface; 0 is none
    proxies: tuple[Proxy, ...] = ()
    lacking: str = ""  # what keeps proxies from being run here, if something does


def read(lan: str, wan: str, keys: Path, proxies: tuple[Proxy, ...] = (), lacking: str = "") -> Readings:
    """Read this host.

    Args:
        lan: the gateway's address towards the applications.
        wan: its address towards other facilities.
        keys: the directory that keys of sessions are in, or will be.
        proxies: as its backends found them.
        lacking: what keeps its launcher from running any, if something does.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return Readings(
        kernel=platform.release(),
        sysctl={name: text for name in SYSCTLS if (text := _sysctl(name))},
        sysctl_fixed=_read_only(_SYSCTL),
        links=_links(lan, wan),
        elsewhere=tuple(f"{name} = {address}" for name, address in (("lan", lan), ("wan", wan)) if _elsewhere(address)),
        cpus=_cpus(),
        cpu_flags=_cpu_flags(),
        governors=frozenset(map(_text, Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor"))),
        tls_module=bool(re.search(r"/tls\.ko", _text(Path(f"/lib/modules/{platform.release()}/modules.dep")))),
        descriptors=0 if hard == resource.RLIM_INFINITY else hard,
        clock_synchronised=_clock_synchronised(),
        keys=str(keys),
        keys_in_memory=in_memory(keys),
        landlock=abi(),
        proxies=proxies,
        lacking=lacking,
    )


def openssl_of(program: Path) -> str:
    """Ask a proxy which OpenSSL it runs with; empty where it does not tell."""
    for option in ("-vv", "-V", "-version"):
        try:
            run = subprocess.run(
                [program, option],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=10,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        text = run.stdout.decode(errors="replace")
        # What it runs with is named after what it was built with, where the two differ.
        if found := re.findall(r"OpenSSL (\d{1,3}\.\d{1,3}\.\d{1,3}\w{0,9})", text):
            return str(found[-1])
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _sysctl(name: str) -> str:
    text = _text(_SYSCTL / name.replace(".", "/"))
    return text if re.fullmatch(SYSCTLS[name], text) else ""


def _read_only(path: Path) -> bool:
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def _elsewhere(address: str) -> bool:
    """Tell whether nothing here can have an address: the kernel is asked, which knows of more than interfaces."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError as error:
        return error.errno == errno.EADDRNOTAVAIL
    return False


def _cpus() -> int:
    """Count the processors that this process may use: a container may have a part of them only."""
    count = len(os.sched_getaffinity(0))
    group = next((line[3:] for line in _text(_CGROUP).splitlines() if line.startswith("0::")), "")
    for path in (Path(group), *Path(group).parents) if group else ():
        if found := re.fullmatch(r"(\d{1,15}) ([1-9]\d{0,14})", _text(_CGROUPS / str(path).lstrip("/") / "cpu.max")):
            count = min(count, int(found[1]) // int(found[2]))
    return max(1, count)


def _links(lan: str, wan: str) -> tuple[Link, ...]:
    names: dict[str, list[str]] = {}
    try:
        addresses = psutil.net_if_addrs()
    except OSError:
        return ()
    for network, wanted in (("wan", wan), ("lan", lan)):
        for name, found in addresses.items():
            if wanted in (each.address.partition("%")[0] for each in found):
                names.setdefault(name, []).append(network)
    return tuple(_link(name, " and ".join(networks)) for name, networks in names.items())


def _link(name: str, network: str) -> Link:
    try:
        stats = psutil.net_if_stats().get(name)
    except OSError:
        stats = None
    directory = _NET / name
    irqs = [path.name for path in (directory / "device/msi_irqs").glob("*")]
    effective = {_text(Path(f"/proc/irq/{irq}/effective_affinity_list")) for irq in irqs}
    return Link(
        name,
        network,
        loopback=_text(directory / "type") == "772",
        mtu=stats.mtu if stats else 0,
        speed=stats.speed * 125_000 if stats and stats.speed < 65535 * 1000 else 0,  # told in Mb/s
        qdisc=_qdisc(name),
        queues=sum(1 for _ in directory.glob("queues/rx-*")),
        interrupts=len(irqs),
        interrupt_cpus=len(effective - {""}),
    )


def _qdisc(name: str) -> str:
    """Ask iproute2, which every distribution has; the kernel has no file for it."""
    program = shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
    if program is None:
        return ""
    try:
        run = subprocess.run(
            [program, "-json", "link", "show", "dev", name], capture_output=True, timeout=10, check=False
        )
        return str(json.loads(run.stdout)[0].get("qdisc", ""))
    except (OSError, ValueError, LookupError, AttributeError, subprocess.SubprocessError):
        return ""


def _cpu_flags() -> frozenset[str]:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def _clock_synchronised() -> bool:
    """Ask the kernel what its clock's keeper told it."""
    state = (ctypes.c_long * 64)()  # struct timex, and more; modes = 0 only reads
    if ctypes.CDLL(None).adjtimex(state) < 0:
        return True
    status = ctypes.cast(ctypes.byref(state, 5 * ctypes.sizeof(ctypes.c_long)), ctypes.POINTER(ctypes.c_int))[0]
    return not status & _ADJTIME_UNSYNCHRONISED
