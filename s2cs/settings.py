"""The gateway's settings as types: a class for each table, and what a running gateway can take over of them.

How they are read is in `settings_file`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s2cs.compat import Compat
from s2cs.identity.settings import Auth
from s2cs.kubernetes_settings import KubernetesSettings
from s2cs.policy.reach import Reach
from s2cs.s2ds.config import WITH_PSK
from s2cs.tables import Address, Duration, Listen, Ports, Table, read_by
from scistream.vocabulary import Endpoint, PortRange, Rate, duration, parse_round_trip

NODE_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")  # part of a DNS name
LOCAL = "local"  # how this host is called among the nodes
GATEWAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


Networks = tuple[Annotated[Reach, read_by(Reach.parse)], ...]
Trusted = tuple[Annotated[Reach, read_by(Reach.whole)], ...]
Cipher = Literal["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
BackendName = Literal["stunnel", "haproxy", "nginx"]


class Server(Table):
    """`[server]`: the control channel and this gateway's own things."""

    name: Annotated[str, Field(pattern=rf"^{GATEWAY_NAME.pattern}$")] = "gateway"
    listen: Annotated[tuple[Listen, ...], Field(min_length=1)] = (Endpoint("127.0.0.1", 5000),)
    certificate: Path = Path("certs/server.crt")  # PEM, with the chain if there is one
    key: Path = Path("certs/server.key")
    state_dir: Path = Path("state")
    runtime_dir: Literal["auto"] | Path = "auto"  # keys of sessions; auto is a place in memory, where there is one
    on_shutdown: Literal["keep", "release"] = "keep"  # the streams, for the next start to take up


class NetworkSettings(Table):
    """`[network]`: where data comes in and goes out."""

    lan: Address = "127.0.0.1"
    wan: Address = "127.0.0.1"
    lan_advertise: str = ""  # what others are told instead, behind address translation
    wan_advertise: str = ""
    ports: Ports = PortRange(30000, 30999)
    wan_port: Annotated[int, Field(ge=0, le=65535)] = 0  # one for all sessions; 0: one of `ports` for each connection
    bandwidth: Annotated[Rate, read_by(Rate.parse)] = Rate()  # that one connection is to reach; 0: what the WAN has
    rtt: Annotated[float, read_by(parse_round_trip)] = 0.05  # seconds, to the other facility


class Proxies(Table):
    """`[s2ds]` of a gateway node: the proxies."""

    backend: Literal["auto"] | BackendName = "auto"
    launcher: Literal["process", "systemd", "docker"] = "process"
    engine: Path = Path("/run/docker.sock")  # where Docker or Podman answers, for launcher docker
    image: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$")] = "scistream"  # with the proxies
    memory_bytes: Annotated[int, Field(ge=0, le=2**50)] = 0  # of one proxy; 0 is no limit, here and below
    tasks: Annotated[int, Field(ge=0, le=2**22)] = 0  # processes and threads of one proxy
    cpu_weight: Annotated[int, Field(ge=1, le=10_000)] = 100  # its share beside other proxies
    user: str = ""  # whom proxies run as; empty is scistream-s2ds or nobody when S2CS is root, else S2CS's own
    programs: dict[BackendName, Path] = Field(default_factory=dict)  # where a proxy is, if not where it is looked for
    buffer_bytes: Annotated[int, Field(ge=4096, le=16 * 2**20)] = 256 * 1024
    ciphers: tuple[Cipher, ...] = ()  # in order; empty = AES-128-GCM first where the CPU has AES
    flow_idle: Duration = 600  # a flow of UDP in which nothing came for so long is over
    grace: Duration = 1  # of a release: for streams to end by themselves
    start_timeout: Duration = 10
    count_period: Duration = 5  # between looks at the kernel's counters of open connections
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = 5  # within a minute, before a session FAILs


class Node(Table):
    """`[[s2ds.nodes]]`: a further gateway node of this facility."""

    name: Annotated[str, Field(pattern=rf"^{NODE_NAME.pattern}$")]
    address: Listen  # in the LAN, where its `s2cs s2ds` listens
    certificate: Path  # the node's own, PEM; it is known by this one alone
    lan: Address  # of the node, as its own settings have them: nothing is forwarded there that is not named alone
    wan: Address
    rate: Annotated[Rate, read_by(Rate.parse)] = Rate()  # that its sessions may reserve together; 0 is no limit


class DataServerSettings(Proxies):
    """`[s2ds]`: the proxies, here and on further nodes."""

    local: bool = True  # this host takes sessions, too
    nodes: tuple[Node, ...] = ()
    certificate: Path = Path("certs/s2ds.crt")  # with which S2CS proves itself to its nodes
    key: Path = Path("certs/s2ds.key")

    @model_validator(mode="after")
    def _somewhere(self) -> DataServerSettings:
        names = [LOCAL, *(node.name for node in self.nodes)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nodes have the same name {', '.join(twice)}; {LOCAL} is this host, give each its own")
        if not self.local and not self.nodes:
            raise ValueError("local is false and there are no nodes; sessions need at least one of them")
        return self


class Limits(Table):
    """`[limits]`: how much, and for how long."""

    sessions: Annotated[int, Field(ge=1, le=100_000)] = 1000
    num_conn: Annotated[int, Field(ge=1, le=4096)] = 128  # of one session
    connections: Annotated[int, Field(ge=1, le=65535)] = 10_000  # of all
    rate: Annotated[Rate, read_by(Rate.parse)] = Rate()  # of all together; 0 is no limit
    default_lease: Duration = 3600
    max_lease: Duration = 7 * 86400
    hello_wait: Duration = 600  # REQ to Hello
    update_wait: Duration = 120  # Hello to UpdateTargets
    keep_ended: Duration = 3600  # how long `status` still knows what became of a session
    peer_connections: Annotated[int, Field(ge=4, le=10_000)] = 256  # of one address to the control port
    stranger_time: Duration = 30  # how long one of them may last without good credentials
    call_rate: Annotated[int, Field(ge=1, le=100_000)] = 200  # a second, of one credential or one address's strangers
    failure_rate: Annotated[int, Field(ge=1, le=10_000)] = 5  # failed authentications a second of one address

    @model_validator(mode="after")
    def _leases(self) -> Limits:
        if self.default_lease > self.max_lease:
            usual, longest = duration(self.default_lease), duration(self.max_lease)
            raise ValueError(f"default_lease ({usual}) is longer than max_lease ({longest})")
        return self


class Rule(Table):
    """`[[policy.rules]]`: what some may; a key that is left out is as `[policy]` and `[limits]` have it for all."""

    name: str = ""  # for people
    users: tuple[str, ...] | None = None  # names; "*" is everybody
    groups: tuple[str, ...] | None = None
    targets: Networks | None = None
    peers: Networks | None = None
    sessions: Annotated[int, Field(ge=0, le=100_000)] | None = None  # of one user at once
    connections: Annotated[int, Field(ge=0, le=65535)] | None = None  # of all sessions of one user together
    rate: Annotated[Rate, read_by(Rate.parse)] | None = None  # of all sessions of one user together
    max_lease: Duration | None = None
    backends: tuple[BackendName, ...] | None = None

    @model_validator(mode="after")
    def _somebody(self) -> Rule:
        if self.users is None and self.groups is None:
            raise ValueError('name users or groups; users = ["*"] is everybody')
        if self.rate is not None and not self.rate.bytes_per_s:
            raise ValueError("a rate of 0 is no limit; leave rate out")
        return self


class Policy(Table):
    """`[policy]`: where this gateway forwards to, and who may what."""

    targets: Networks = ()  # applications in the LAN
    peers: Networks = ()  # other facilities' gateways
    trusted_wan: Trusted = ()  # of those, the ones to and from which UDP may go, in plain
    rules: tuple[Rule, ...] = ()  # the first that names a user is the user's


class MetricsSettings(Table):
    """`[metrics]`: what the gateway tells of itself over HTTP, to whoever can reach it."""

    listen: tuple[Listen, ...] = ()


class WebSettings(Table):
    """`[web]`: the page for people, over plain HTTP on loopback and with the gateway's certificate elsewhere."""

    listen: tuple[Listen, ...] = ()
    idle: Duration = 1800  # a log-in that nobody looks with ends
    life: Duration = 8 * 3600  # of a log-in, whatever is done with it


class AuditSettings(Table):
    """`[audit]`: the record of who asked what."""

    enabled: bool = True
    directory: Literal[""] | Path = ""  # empty: `audit` in the state directory
    max_bytes: Annotated[int, Field(ge=4096, le=2**40)] = 16 * 2**20  # of a file, before the next one begins
    keep_files: Annotated[int, Field(ge=2, le=100_000)] = 64
    keep_age: Duration = 400 * 86400
    on_failure: Literal["refuse", "continue"] = "refuse"  # new sessions, while the log cannot be written
    refusals_per_minute: Annotated[int, Field(ge=1, le=10_000)] = 10  # of one address; the others are counted


class StoreSettings(Table):
    """`[store]`: users and sessions in etcd, shared by several S2CS of one facility, instead of in a file of one."""

    etcd: tuple[Listen, ...] = ()  # its nodes; empty: a file in the state directory
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")] = (
        "scistream"  # of this facility's keys
    )
    ca: Literal[""] | Path = ""  # PEM, of etcd's certificates; empty is without TLS
    certificate: Literal[""] | Path = ""  # with which S2CS proves itself to etcd
    key: Literal[""] | Path = ""
    listen: Literal[""] | Listen = ""  # where this facility's other S2CS reach this one
    ttl: Annotated[int, Field(ge=2, le=60)] = 3  # seconds until another one leads when the one that led is gone

    @model_validator(mode="after")
    def _whole(self) -> StoreSettings:
        if bool(self.certificate) != bool(self.key):
            raise ValueError("certificate and key go together; give both")
        if self.certificate and not self.ca:
            raise ValueError("certificate is for TLS, which needs ca; give both")
        if self.etcd and not self.listen:
            raise ValueError(
                "etcd is shared by several S2CS, which reach each other; give listen, an address of the LAN"
            )
        return self


class Settings(Table):
    """All tables."""

    server: Server = Server()
    network: NetworkSettings = NetworkSettings()
    s2ds: DataServerSettings = DataServerSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    limits: Limits = Limits()
    policy: Policy = Policy()
    auth: Auth = Auth()
    metrics: MetricsSettings = MetricsSettings()
    web: WebSettings = WebSettings()
    audit: AuditSettings = AuditSettings()
    compat: Compat = Compat()
    store: StoreSettings = StoreSettings()

    @model_validator(mode="after")
    def _anywhere(self) -> Settings:
        if self.store.etcd and self.s2ds.local:
            raise ValueError(
                "with [store] etcd no session is on the host of an S2CS, since another one may have to go on with it; "
                "set [s2ds] local = false, and run s2cs s2ds on each gateway node"
            )
        if self.store.etcd and self.server.on_shutdown != "keep":
            raise ValueError('with [store] etcd another S2CS goes on; set [server] on_shutdown = "keep"')
        return self

    @model_validator(mode="after")
    def _suites_for_psk(self) -> Settings:
        if self.compat.psk and self.s2ds.ciphers and not set(self.s2ds.ciphers) & set(WITH_PSK):
            raise ValueError(f"[compat] psk fits none of the [s2ds] ciphers; add {' or '.join(WITH_PSK)}")
        return self

    @model_validator(mode="after")
    def _pods_alone(self) -> Settings:
        if not self.kubernetes.enabled:
            return self
        if self.store.etcd:
            raise ValueError("[kubernetes] is for one S2CS, not for several on [store] etcd; leave one out")
        if self.s2ds.nodes:
            raise ValueError("[kubernetes] enabled places all sessions in the cluster; leave [[s2ds.nodes]] out")
        if self.network.wan_port:
            raise ValueError("[network] wan_port is for sessions of this host, not for [kubernetes]; leave one out")
        ports, control = self.network.ports, self.kubernetes.control_ports
        if ports.first <= control.last and control.first <= ports.last:
            raise ValueError(f"[kubernetes] control_ports {control} overlap [network] ports {ports}; move one of them")
        return self

    @model_validator(mode="after")
    def _one_port_for_certificates(self) -> Settings:
        if self.compat.psk and self.network.wan_port:
            raise ValueError(
                "[network] wan_port tells sessions apart by certificates, which [compat] psk is without; leave one out"
            )
        return self


# What a running gateway cannot change: [table] and its keys, all of them if none is named.
FIXED: dict[str, tuple[str, ...]] = {
    "server": ("listen", "state_dir", "runtime_dir"),
    "network": (),
    "metrics": (),
    "web": ("listen",),
    "s2ds": ("launcher", "engine", "image", "user"),
    "audit": (),
    "store": (),
    "kubernetes": ("enabled", "api", "ca", "token_file", "namespace"),
}


OF_NODES = ("local", "nodes", "certificate", "key")  # of [s2ds]: fixed, too, where a gateway began without nodes


def succeed(old: Settings, new: Settings, with_nodes: bool) -> tuple[Settings, list[str]]:
    """Give the settings that a running gateway can take over, and the names of those that wait for a restart.

    Args:
        old: what is in force.
        new: what is wanted.
        with_nodes: it began with nodes, and can have others.
    """
    tables, waiting = {}, []
    for table, fixed in FIXED.items():
        keys = fixed + OF_NODES if table == "s2ds" and not with_nodes else fixed
        before, after = getattr(old, table), getattr(new, table)
        kept = {key: getattr(before, key) for key in keys or type(before).model_fields}
        waiting += [f"[{table}] {key}" for key, value in kept.items() if getattr(after, key) != value]
        tables[table] = after.model_copy(update=kept)
    return new.model_copy(update=tables), waiting
