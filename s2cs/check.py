"""`s2cs check`: everything that could keep this gateway from working, found before it matters."""

from __future__ import annotations

import asyncio
import errno
import os
import pwd
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

import scistream
from s2cs import runtime
from s2cs.audit.log import directory_of
from s2cs.commands.common import opened
from s2cs.credentials import read_certificate
from s2cs.data_server import access, link, local_config, shape
from s2cs.identity.authenticator import Methods
from s2cs.identity.certificates import read_client_ca
from s2cs.identity.settings import Auth
from s2cs.lock import running_pid
from s2cs.policy.decision import hidden_rules
from s2cs.s2ds import confinement, landlock
from s2cs.s2ds.config import Containers
from s2cs.s2ds.contract import Capability
from s2cs.s2ds.kubernetes.api import Api
from s2cs.s2ds.kubernetes.trying import try_out
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.local import LocalDataServer
from s2cs.s2ds.remote.codec import NodeInfo
from s2cs.s2ds.remote.link import describe
from s2cs.s2ds.router import DIRECTORY, RELAY
from s2cs.settings import Settings
from s2cs.tables import others_can_read
from scistream.errors import FailedPrecondition, NotFound, ScistreamError
from scistream.vocabulary import Endpoint
from scistream.x509 import SKEW, check_server_certificate

_EXPIRY_WARNING_DAYS = 30
_CLOCK_S = 10  # more than an answer takes
_DESCRIPTORS_PER_CONNECTION = 4


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    ok: bool
    text: str
    warning: bool = False  # it works, but not for long or not well


def check(settings: Settings) -> list[Finding]:
    """Look at everything; never stop at the first fault."""
    looks: list[Callable[[Settings], Iterator[Finding]]] = [
        _certificate,
        _directory,
        _store,
        _listeners,
        _ports,
        _proxies,
        _nodes,
        _confinement,
        _policy,
        _identity,
        _limits,
        _audit,
        _compat,
    ]
    if settings.kubernetes.enabled:  # there are no sessions on this host
        looks = [_kubernetes if look is _proxies else look for look in looks if look not in (_ports, _confinement)]
    return [finding for look in looks for finding in look(settings)]


def _kubernetes(settings: Settings) -> Iterator[Finding]:
    for kind, text in asyncio.run(try_out(Api(access(settings)), shape(settings))):
        yield Finding(kind != "bad", text, warning=kind == "warn")


def _certificate(settings: Settings) -> Iterator[Finding]:
    try:
        pem, key = read_certificate(settings)
    except ScistreamError as error:
        yield Finding(False, str(error))
        return
    left = check_server_certificate(pem, key).not_valid_after_utc - datetime.now(UTC)
    text = f"certificate {settings.server.certificate} is valid for {left.days} days"
    yield Finding(True, text, warning=left.days < _EXPIRY_WARNING_DAYS)
    if others_can_read(settings.server.key):
        yield Finding(False, f"key {settings.server.key} can be read by others; mend: chmod 600 {settings.server.key}")


def _identity(settings: Settings) -> Iterator[Finding]:
    try:
        read_client_ca(settings.auth.certificates)
        found = asyncio.run(_tried_out(settings.auth))
    except ScistreamError as error:
        yield Finding(False, str(error))
        return
    for good, text in found:
        yield Finding(True, text, warning=not good)  # an issuer may be back when it is needed


async def _tried_out(auth: Auth) -> list[tuple[bool, str]]:
    methods = Methods(auth)
    try:
        return await methods.try_out()
    finally:
        await methods.close()


def _directory(settings: Settings) -> Iterator[Finding]:
    directory = settings.server.state_dir
    existing = directory if directory.exists() else next(p for p in directory.parents if p.exists())
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        yield Finding(False, f"state directory {directory} cannot be written; mend its owner, or [server] state_dir")
        return
    free = os.statvfs(existing)
    megabytes = free.f_bavail * free.f_frsize // 2**20
    if megabytes < 100:
        yield Finding(False, f"state directory {directory} has only {megabytes} MiB free; make room")
    elif directory.exists() and directory.stat().st_mode & 0o077:
        yield Finding(False, f"state directory {directory} is open to others; mend: chmod 700 {directory}")
    else:
        yield Finding(True, f"state directory {directory} can be used, {megabytes} MiB free")


def _store(settings: Settings) -> Iterator[Finding]:
    """Ask a shared store."""
    if not settings.store.etcd:
        return
    where = ", ".join(map(str, settings.store.etcd))
    try:
        with opened(settings) as store:
            users = len(store.users.all())
    except ScistreamError as error:
        yield Finding(False, str(error))
        return
    text = f"the shared store at {where} can be used, and has {users} users"
    yield Finding(True, text if users else f"{text}; add one: s2cs user add NAME --admin", warning=not users)
    if not settings.store.ca:
        text = "[store] ca is empty: what is said to etcd is not encrypted, and who reaches it can be any user"
        yield Finding(True, text, warning=True)


def _audit(settings: Settings) -> Iterator[Finding]:
    directory = directory_of(settings)
    if not settings.audit.enabled:
        yield Finding(True, "[audit] enabled is false: nobody will know who asked for what", warning=True)
        return
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        yield Finding(True, f"audit log {directory} can be written")
    else:
        refuses = "no session would begin; " if settings.audit.on_failure == "refuse" else ""
        yield Finding(False, f"audit log {directory} cannot be written; {refuses}mend its owner, or [audit] directory")


def _bind(address: str, port: int) -> OSError | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, port))
            sock.listen(1)
        except OSError as error:
            return error
    return None


def _own_ports(settings: Settings) -> Iterator[tuple[str, Endpoint]]:
    for endpoint in (*settings.server.listen, *settings.auth.certificates.listen):
        yield "control port", endpoint
    for endpoint in settings.metrics.listen:
        yield "metrics port", endpoint
    if settings.network.wan_port:
        yield "WAN port", Endpoint(settings.network.wan, settings.network.wan_port)
    for endpoint in settings.web.listen:
        yield "port of the page", endpoint
    if isinstance(settings.store.listen, Endpoint):
        yield "port for other S2CS", settings.store.listen


def _listeners(settings: Settings) -> Iterator[Finding]:
    known: dict[Endpoint, str] = {}
    for what, endpoint in _own_ports(settings):
        error = _bind(endpoint.host, endpoint.port)
        if (other := known.setdefault(endpoint, what)) is not what:
            yield Finding(False, f"{what} {endpoint} is the {other}, too; change one of them")
        elif error is None:
            yield Finding(True, f"{what} {endpoint} is free")
        elif error.errno == errno.EADDRINUSE and running_pid(settings) is not None:
            yield Finding(True, f"{what} {endpoint} is in use; this gateway is running")
        elif error.errno == errno.EADDRINUSE and what == "WAN port" and (runtime.place(settings) / DIRECTORY).exists():
            yield Finding(True, f"{what} {endpoint} is in use; streams of this gateway go on")
        else:
            key = "wan_port" if what == "WAN port" else "listen"
            yield Finding(False, f"{what} {endpoint} cannot be used: {error.strerror}; change {key}")


def _ports(settings: Settings) -> Iterator[Finding]:
    network = settings.network
    for name, address in (("lan", network.lan), ("wan", network.wan)):
        error = _bind(address, 0)
        if error is not None:
            yield Finding(
                False, f"[network] {name} {address} is not an address of this host ({error.strerror}); name one that is"
            )
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ephemeral.exists():
        low, high = map(int, ephemeral.read_text().split())
        overlap = network.ports.first <= high and low <= network.ports.last
        yield Finding(
            True,
            f"ports {network.ports}"
            + (f" overlap the ports that the kernel gives to outgoing connections ({low}-{high})" if overlap else ""),
            warning=overlap,
        )
    for what, endpoint in _own_ports(settings):
        if network.ports.first <= endpoint.port <= network.ports.last:
            yield Finding(False, f"{what} {endpoint} is inside [network] ports {network.ports}; move one of them")


def _proxies(settings: Settings) -> Iterator[Finding]:
    backends = LocalDataServer(local_config(settings, runtime.place(settings))).backends()
    wanted = settings.s2ds.backend
    usable = [b for b in backends if b.available and Capability.MUTUAL_TLS in b.capabilities]
    for backend in backends:
        if backend.available:
            able = ", ".join(sorted(backend.capabilities))
            yield Finding(True, f"backend {backend.name} {backend.version}: {able}")
            if backend.caution:
                yield Finding(True, f"backend {backend.name} {backend.version}: {backend.caution}", warning=True)
        else:
            needed = wanted == backend.name or (wanted == "auto" and not usable)
            needed |= backend.name == RELAY and settings.network.wan_port > 0
            needed &= settings.s2ds.local  # sessions on further nodes have the proxies there
            yield Finding(not needed, f"backend {backend.name}: {backend.reason}", warning=not needed)


def _nodes(settings: Settings) -> Iterator[Finding]:
    """Ask each further node; one that does not answer may be back when it is needed."""
    if not settings.s2ds.nodes:
        return
    yield from _lasting("certificate", settings.s2ds.certificate)
    for node in settings.s2ds.nodes:
        try:
            info = asyncio.run(describe(link(settings, node)))
        except FailedPrecondition as error:
            yield Finding(False, str(error))
            continue
        except ScistreamError as error:
            yield Finding(True, f"{error}; is s2cs s2ds running there?", warning=True)
            continue
        yield from _lasting(f"certificate of node {node.name}", node.certificate)
        usable = [f"{backend.name} {backend.version}" for backend in info.backends if backend.available]
        words = ", ".join(usable) or "no proxy can be used there"
        yield Finding(True, f"node {node.name} at {node.address} answers: {words}", warning=not usable)
        if settings.compat.psk and (lacking := _no_psk(info)):
            text = f"[compat] psk: sessions of clients without credentials fail on node {node.name}: {lacking}"
            yield Finding(True, text, warning=True)
        if info.version != scistream.__version__:
            text = f"node {node.name} runs version {info.version}, and this is {scistream.__version__}"
            yield Finding(True, f"{text}; install the same", warning=True)
        own = settings.network.wan_port
        if info.wan_port != own and (own or settings.s2ds.local):
            text = f"node {node.name} has wan_port {info.wan_port}, and this gateway {own}"
            yield Finding(True, f"{text}; let the firewall know of both, or change one", warning=True)
        if (off := abs(info.ahead_s)) > _CLOCK_S:
            how = "ahead of" if info.ahead_s > 0 else "behind"
            text = f"the clock of node {node.name} is {off:.0f} s {how} this host's; set both by NTP"
            yield Finding(off <= SKEW.total_seconds(), text, warning=True)


def _no_psk(info: NodeInfo) -> str:
    """Say why there can be no pre-shared keys on a node, and the mend; empty where there can."""
    if info.wan_port:
        return "one WAN port tells sessions apart by certificates; set its wan_port = 0"
    if not any(each.available and Capability.PSK in each.capabilities for each in info.backends):
        return "no proxy there does pre-shared keys; install stunnel there"
    return ""


def _lasting(what: str, path: Path) -> Iterator[Finding]:
    """Look at how long a certificate lasts that the two ends know by itself."""
    try:
        end = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        yield Finding(False, f"{what} {path} cannot be read; make the node again: s2cs nodes add")
        return
    left = end - datetime.now(UTC)
    if left.total_seconds() <= 0:
        yield Finding(False, f"{what} {path} expired on {end:%Y-%m-%d}; make the node again: s2cs nodes add")
    else:
        yield Finding(True, f"{what} {path} is valid for {left.days} days", warning=left.days < _EXPIRY_WARNING_DAYS)


def _served_by(settings: Settings) -> str:
    """Name the user who S2CS was run as, where that is another than root."""
    with suppress(OSError):
        if owner := settings.server.state_dir.stat().st_uid:
            with suppress(KeyError):
                return pwd.getpwuid(owner).pw_name
            return str(owner)
    return ""


def _confinement(settings: Settings) -> Iterator[Finding]:
    """Look at what runs the proxies, and what keeps them from each other and keys from everybody else."""
    containers = Containers(settings.s2ds.engine, settings.s2ds.image)
    if lacking := LAUNCHERS[settings.s2ds.launcher].using(containers).lacks():
        yield Finding(False, f'[s2ds] launcher "{settings.s2ds.launcher}" cannot be used: {lacking}')
    elif settings.s2ds.launcher == "systemd" and (user := _served_by(settings)):
        text = f"systemd makes units for root only, and S2CS was run as {user}; run it with privileged.conf, or as root"
        yield Finding(True, f'[s2ds] launcher "systemd": {text}', warning=True)
    try:
        found = confinement.choose(settings.s2ds.user)
    except ScistreamError as error:
        yield Finding(False, str(error))
        return
    yield Finding(True, found.caution or f"proxies run as {found.user}", warning=bool(found.caution))
    version = landlock.abi()
    without = "the kernel has no Landlock (5.13 and later): a proxy can read what its user can"
    yield Finding(True, f"proxies open only their own files (Landlock {version})" if version else without, not version)
    place = runtime.place(settings)
    if (closed := found.closed(place)) is not None:
        text = f"runtime directory {place} cannot be reached by {found.user} past {closed}"
        yield Finding(False, f"{text}; change [server] runtime_dir, or [s2ds] user")
    elif runtime.in_memory(place):
        yield Finding(True, f"keys of sessions are in memory, in {place}")
    else:
        mend = "name a directory of its own on a tmpfs as [server] runtime_dir"
        yield Finding(True, f"keys of sessions are on a disk, in {place}; {mend}", warning=True)
    piped = Path("/proc/sys/kernel/core_pattern").read_text().startswith("|")
    if confinement.forbid_cores() or not piped:
        yield Finding(True, "no cores are left, which would hold keys")
    else:
        text = "cores are piped to a program and cannot be forbidden; set LimitCORE=1 for this service"
        yield Finding(True, text, warning=True)


def _policy(settings: Settings) -> Iterator[Finding]:
    for key, what in (("targets", "applications"), ("peers", "other gateways")):
        networks = getattr(settings.policy, key)
        if not networks:
            yield Finding(
                True, f"[policy] {key} is empty: no way to {what} can be opened; name their networks", warning=True
            )
        else:
            yield Finding(True, f"[policy] {key}: {', '.join(map(str, networks))}")
    for number, by in hidden_rules(settings.policy).items():
        yield Finding(
            True, f"[[policy.rules]] {number} is nobody's: rule {by} names all of them before it", warning=True
        )


def _nobody(settings: Settings) -> str:
    """Say why nobody is served without a token all the same; empty where somebody is, or that cannot be known."""
    if not (settings.store.etcd or (settings.server.state_dir / "s2cs.db").exists()):
        return ""
    name = settings.compat.user
    try:
        with opened(settings) as store:
            disabled = store.users.by_name(name).disabled
    except NotFound:
        return f"there is no user {name}, so nobody is served without a token; add it: s2cs user add {name}"
    except ScistreamError:
        return ""
    return f"{name} is disabled, so nobody is served without a token" if disabled else ""


def _compat(settings: Settings) -> Iterator[Finding]:
    compat = settings.compat
    if compat.user:
        text = f"whoever reaches the control port is {compat.user}, without a token"
        yield Finding(True, f"[compat] user: {_nobody(settings) or text}", warning=True)
    try:
        secret = compat.secret()  # without psk, too: s2cs reads it at its start
    except ScistreamError as error:
        yield Finding(False, str(error))
        return
    if not compat.psk:
        return
    if not secret:
        yield Finding(
            True, "[compat] psk: whoever knows a uid reaches its session; share a psk_secret_file", warning=True
        )
    local = local_config(settings, runtime.place(settings))
    here = settings.s2ds.local and not settings.kubernetes.enabled
    backends = LocalDataServer(local).backends() if here else ()
    if backends and not any(each.available and Capability.PSK in each.capabilities for each in backends):
        yield Finding(False, "[compat] psk: no backend here does pre-shared keys; install stunnel")


def _limits(settings: Settings) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.limits.num_conn * _DESCRIPTORS_PER_CONNECTION + 64
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield Finding(
            False, f"descriptor limit {hard} is under the {needed} of one session; raise it: ulimit -n {needed}"
        )
    else:
        yield Finding(True, f"descriptor limit {soft} (at most {hard})")
    limits = settings.limits
    yield Finding(
        True,
        f"an address gets {limits.peer_connections} connections to the control port, {limits.stranger_time} s for a "
        f"stranger's; {limits.call_rate} calls and {limits.failure_rate} failed authentications a second",
    )
