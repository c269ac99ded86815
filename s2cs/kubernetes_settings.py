"""`[kubernetes]`: where the cluster is, and how the pods of sessions are to be."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from s2cs.tables import Address, Duration, Ports, Table
from scistream.vocabulary import PortRange

_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of a pod
_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
_LABEL = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
_KEY = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
Key = Annotated[str, Field(pattern=_KEY)]
Value = Annotated[str, Field(pattern=_LABEL)]


class Toleration(Table):
    """`[[kubernetes.tolerations]]`: a taint of nodes that sessions may go to all the same."""

    key: Key
    operator: Literal["Equal", "Exists"] = "Equal"
    value: Value = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @property
    def fields(self) -> dict[str, str]:
        """As Kubernetes has them."""
        return {key: value for key, value in self.model_dump().items() if value}


class KubernetesNode(Table):
    """`[[kubernetes.nodes]]`: a node of the cluster that takes sessions, and its addresses."""

    name: Annotated[str, Field(pattern=_NAME)]
    lan: Address
    wan: Address


class KubernetesSettings(Table):
    """All of it."""

    enabled: bool = False
    api: Annotated[str, Field(pattern=r"^(https://\S+)?$")] = ""  # empty: of the cluster that S2CS is a pod of
    ca: Path = _ACCOUNT / "ca.crt"
    token_file: Path = _ACCOUNT / "token"
    namespace: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")] = "scistream"
    control_ports: Ports = PortRange(29000, 29999)  # of nodes: where S2CS reaches the pods
    node_selector: dict[Key, Value] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    nodes: tuple[KubernetesNode, ...] = ()  # empty: any, with the address that the cluster knows
    priority_class: Annotated[str, Field(pattern=rf"{_NAME}|^$")] = ""
    cpu_per_gbit: Annotated[float, Field(ge=0, le=64)] = 0.15  # CPUs requested for each Gb/s of a session's rate
    rate_resource: Annotated[str, Field(pattern=rf"{_KEY}|^$")] = ""  # of nodes, that sessions take Mb/s of
    wait: Annotated[Duration, Field(le=28)] = 25  # for a pod to run; a reservation takes 30 s at most

    @model_validator(mode="after")
    def _told_apart(self) -> KubernetesSettings:
        names = [node.name for node in self.nodes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"nodes are named twice: {', '.join(twice)}; name each once")
        return self
