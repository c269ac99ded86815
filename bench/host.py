"""What the figures were measured on: the machine, its programs, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

import scistream

_SEARCH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PROGRAMS = {
    "nginx": ["nginx", "-v"],
    "haproxy": ["haproxy", "-v"],
    "stunnel": ["stunnel4", "-version"],
    "envoy": ["envoy", "--version"],
    "openssh": ["ssh", "-V"],
    "socat": ["socat", "-V"],
    "hitch": ["hitch", "--version"],
    "iperf3": ["iperf3", "--version"],
    "nats-server": ["nats-server", "--version"],
    "openssl": ["openssl", "version"],
}
_PACKAGES = ("grpcio", "cryptography", "protobuf", "pydantic", "pyzmq", "p4p", "nats-py")
_VERSION = re.compile(r"\d+\.\d+[\w.]*")


def program(name: str) -> str | None:
    """Find a program: beside this Python, on the path, or where daemons are."""
    beside = Path(sys.prefix, "bin", name)
    return str(beside) if beside.exists() else shutil.which(name, path=_SEARCH)


def machine() -> dict[str, str]:
    """Name all that a figure depends on."""
    memory = psutil.virtual_memory().total / 2**30
    found = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _output("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--tags"),
        "scistream": scistream.__version__,
        "CPU": _cpu(),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else "",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "congestion control": _read("/proc/sys/net/ipv4/tcp_congestion_control"),
        "tcp_rmem": _read("/proc/sys/net/ipv4/tcp_rmem"),
        "tcp_wmem": _read("/proc/sys/net/ipv4/tcp_wmem"),
    }
    return {name: text for name, text in found.items() if text} | versions()


def versions() -> dict[str, str]:
    """Name the version of each program and package that takes part."""
    found = {}
    for name, (first, *options) in _PROGRAMS.items():
        if (path := program(first)) and (match := _VERSION.search(_output(path, *options))):
            found[name] = match[0]
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load() -> float:
    """Tell how busy the machine is, before a part begins: runnable processes, on average of the last minute."""
    return os.getloadavg()[0]


def _cpu() -> str:
    match = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return match[1] if match else platform.machine()


def _read(path: str) -> str:
    try:
        return " ".join(Path(path).read_text().split()) if "cpuinfo" not in path else Path(path).read_text()
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return (run.stdout + run.stderr).strip()
