"""The data server that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from s2cs import runtime
from s2cs.node_settings import NodeSettings
from s2cs.s2ds.config import Containers, Limits
from s2cs.s2ds.homes import Home
from s2cs.s2ds.local import Interface, LocalConfig, LocalDataServer
from s2cs.s2ds.nodes import Nodes
from s2cs.s2ds.remote.link import Link
from s2cs.settings import LOCAL, Settings
from s2cs.settings import Node as NodeEntry
from s2cs.store import Store
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.x509 import check_server_certificate


def data_server(settings: Settings, store: Store, term: Callable[[], int] | None = None) -> LocalDataServer | Nodes:
    """Make the data server of a gateway: of this host, and of further nodes where there are any.

    Args:
        settings: the gateway's.
        store: says where sessions are.
        term: of several S2CS that share the store, in which one this leads; it raises when it does not.

    Raises:
        FailedPrecondition: a certificate cannot be used.
    """
    local = LocalDataServer(local_config(settings, runtime.tunnels(settings)))
    if not settings.s2ds.nodes:
        return local

    def homes() -> Iterable[Home]:
        running = (session for session in store.sessions() if not session.state.ended)
        return [Home(s.id, s.node or LOCAL, s.request.rate.bytes_per_s) for s in running]

    def drained(name: str) -> bool:
        return (name == LOCAL and not settings.s2ds.local) or store.fact(drained_fact(name)) == "yes"

    return Nodes(
        [(replace(link(settings, node), term=term), node.rate) for node in settings.s2ds.nodes], local, homes, drained
    )


def drained_fact(node: str) -> str:
    """Name the fact in the store that tells whether a node is being drained."""
    return f"draining {node}"


def link(settings: Settings, node: NodeEntry) -> Link:
    """Say how a node is reached.

    Raises:
        FailedPrecondition: a certificate cannot be read or used.
    """
    files = {
        "[[s2ds.nodes]] certificate": node.certificate,
        "[s2ds] certificate": settings.s2ds.certificate,
        "[s2ds] key": settings.s2ds.key,
    }
    pems = []
    for what, path in files.items():
        try:
            pems.append(path.read_bytes())
        except OSError as error:
            raise FailedPrecondition(
                f"{what} {path} cannot be read: {error.strerror}; mend it, or make node {node.name} with: "
                "s2cs nodes add"
            ) from None
    try:
        check_server_certificate(pems[1], pems[2])
    except InvalidArgument as error:
        raise FailedPrecondition(f"[s2ds] certificate {settings.s2ds.certificate} cannot be used: {error}") from None
    own, certificate, key = pems
    return Link(node.name, node.address, own, certificate, key)


def local_config(settings: Settings | NodeSettings, directory: Path) -> LocalConfig:
    """Say how the data server of this node is to be, as the settings have it, with its files in a directory."""
    network, s2ds = settings.network, settings.s2ds
    return LocalConfig(
        directory=directory,
        lan=Interface(network.lan, network.lan_advertise or network.lan),
        wan=Interface(network.wan, network.wan_advertise or network.wan),
        ports=network.ports,
        wan_port=network.wan_port,
        backend=s2ds.backend,
        launcher=s2ds.launcher,
        limits=Limits(s2ds.memory_bytes, s2ds.tasks, s2ds.cpu_weight),
        containers=Containers(s2ds.engine, s2ds.image),
        user=s2ds.user,
        programs={str(name): path for name, path in s2ds.programs.items()},
        buffer_bytes=s2ds.buffer_bytes,
        in_flight=round(network.bandwidth.bytes_per_s * network.rtt),
        ciphers=tuple(s2ds.ciphers),
        flow_idle_s=s2ds.flow_idle,
        grace_s=s2ds.grace,
        start_timeout_s=s2ds.start_timeout,
        count_s=s2ds.count_period,
        max_restarts=s2ds.max_restarts,
    )
