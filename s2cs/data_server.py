"""The data server that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from s2cs import runtime
from s2cs.node_settings import NodeSettings
from s2cs.s2ds.config import Containers, Limits
from s2cs.s2ds.homes import Home
from s2cs.s2ds.kubernetes.api import Access, Api
from s2cs.s2ds.kubernetes.cluster import Cluster, Identity
from s2cs.s2ds.kubernetes.shape import Place, Shape, toml
from s2cs.s2ds.local import Interface, LocalConfig, LocalDataServer
from s2cs.s2ds.nodes import Nodes
from s2cs.s2ds.remote.link import Link
from s2cs.settings import LOCAL, Settings
from s2cs.settings import Node as NodeEntry
from s2cs.setup import write_whole
from s2cs.store import Store
from scistream.errors import FailedPrecondition, InvalidArgument
from scistream.vocabulary import Rate
from scistream.x509 import check_server_certificate, pinned

CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
_PODS_OF = "pods of"
_IDENTITY_DAYS = 3650  # it never leaves this gateway


def data_server(
    settings: Settings, store: Store, term: Callable[[], int] | None = None
) -> LocalDataServer | Nodes | Cluster:
    """Make the data server of a gateway: of this host, and of further nodes where there are any, or of a cluster.

    Args:
        settings: the gateway's.
        store: says where sessions are.
        term: of several S2CS that share the store, in which one this leads; it raises when it does not.

    Raises:
        FailedPrecondition: a certificate cannot be used.
    """

    def homes() -> Iterable[Home]:
        running = (session for session in store.sessions() if not session.state.ended)
        return [Home(s.id, s.node or LOCAL, s.request.rate.bytes_per_s) for s in running]

    if settings.kubernetes.enabled:
        known = replace(shape(settings), gateway=_pods_of(settings, store))
        return Cluster(Api(access(settings)), known, _identity(settings), homes)
    local = LocalDataServer(local_config(settings, runtime.tunnels(settings)))
    if not settings.s2ds.nodes:
        return local

    def drained(name: str) -> bool:
        return store.fact(drained_fact(name)) == "yes"

    return Nodes(links(settings, term), local, homes, drained, settings.s2ds.local)


def _pods_of(settings: Settings, store: Store) -> str:
    """Name the gateway as its pods do: as it was called first, since pods outlive a change of its name."""
    if not (name := store.fact(_PODS_OF)):
        store.note(_PODS_OF, name := shape(settings).gateway)
    return name


def links(settings: Settings, term: Callable[[], int] | None) -> dict[Link, Rate]:
    """Say how the further nodes are reached, and what rate each can carry.

    Args:
        settings: the gateway's.
        term: as above.

    Raises:
        FailedPrecondition: a certificate cannot be used.
    """
    return {replace(link(settings, node), term=term): node.rate for node in settings.s2ds.nodes}


def configure(server: LocalDataServer | Nodes | Cluster, settings: Settings) -> None:
    """Let a data server take other settings for the tunnels to come."""
    if isinstance(server, Cluster):
        server.configure(shape(settings))
    else:
        server.configure(local_config(settings, runtime.place(settings)))


def access(settings: Settings) -> Access:
    """Say where the cluster's API is, and as whom it is asked."""
    kubernetes = settings.kubernetes
    return Access(kubernetes.api, kubernetes.ca, kubernetes.token_file, kubernetes.namespace)


def shape(settings: Settings) -> Shape:
    """Say how the pods of sessions are to be."""
    network, s2ds, kubernetes = settings.network, settings.s2ds, settings.kubernetes
    proxies = {
        "backend": s2ds.backend,
        "buffer_bytes": s2ds.buffer_bytes,
        "ciphers": list(s2ds.ciphers),
        "grace": s2ds.grace,
        "start_timeout": s2ds.start_timeout,
        "count_period": s2ds.count_period,
        "max_restarts": s2ds.max_restarts,
    }
    path = {"rtt": f"{network.rtt:.6f}s"}
    if network.bandwidth.bytes_per_s:
        path["bandwidth"] = f"{network.bandwidth.bytes_per_s}B/s"
    return Shape(
        gateway=settings.server.name.rstrip("._-"),
        image=s2ds.image,
        control_ports=kubernetes.control_ports,
        ports=network.ports,
        node=f"{toml(path)}[s2ds]\n{toml(proxies)}",
        node_selector=kubernetes.node_selector,
        tolerations=tuple(toleration.fields for toleration in kubernetes.tolerations),
        places=tuple(Place(node.name, node.lan, node.wan) for node in kubernetes.nodes),
        priority_class=kubernetes.priority_class,
        cpu_per_gbit=kubernetes.cpu_per_gbit,
        rate_resource=kubernetes.rate_resource,
        buffer_bytes=s2ds.buffer_bytes,
        memory_bytes=s2ds.memory_bytes,
        wait_s=kubernetes.wait,
    )


def _identity(settings: Settings) -> Identity:
    """Give S2CS's own certificate for pods, which is made where there is none: it outlives S2CS with the sessions."""
    directory = settings.server.state_dir
    certificate, key = directory / "pods.crt", directory / "pods.key"
    if settings.s2ds.certificate.exists():  # several S2CS of a gateway have this one in common
        certificate, key = settings.s2ds.certificate, settings.s2ds.key
    try:
        if not certificate.exists():
            end = datetime.now(UTC) + timedelta(days=_IDENTITY_DAYS)
            made, made_key = pinned(f"{settings.server.name.lower()}.s2cs.scistream.internal", CLIENT_AUTH, end)
            write_whole(key, made_key.pem, 0o600)
            write_whole(certificate, made.pem, 0o644)
        return Identity(certificate.read_bytes(), key.read_bytes())
    except OSError as error:
        raise FailedPrecondition(
            f"{error.filename or certificate} cannot be used: {error.strerror}; mend its owner, or [server] state_dir"
        ) from None


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
