"""The settings of a further gateway node: one file, the bundle that `s2cs nodes add` writes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from s2cs.settings import GATEWAY_NAME, NetworkSettings, Proxies
from s2cs.settings_file import read
from s2cs.tables import Listen, Table, others_can_read
from scistream.errors import FailedPrecondition


class NodeServer(Table):
    """`[server]` of a node: where S2CS reaches it, and who is who."""

    name: Annotated[str, Field(pattern=rf"^{GATEWAY_NAME.pattern}$")]
    listen: Annotated[tuple[Listen, ...], Field(min_length=1)]
    certificate: str  # PEM, and so are these
    key: SecretStr
    gateways: Annotated[tuple[str, ...], Field(min_length=1)]  # the certificates of S2CS; nobody else is let in
    state_dir: Path = Path("state")
    runtime_dir: Literal["auto"] | Path = "auto"


class NodeSettings(Table):
    """All tables."""

    server: NodeServer
    network: NetworkSettings = NetworkSettings()
    s2ds: Proxies = Proxies()


def load_node(file: Path) -> NodeSettings:
    """Read a node's settings.

    Raises:
        SettingsError: they cannot be read, or anything in them is not accepted.
        FailedPrecondition: others can read the key in them.
    """
    settings = read(file, NodeSettings)
    if others_can_read(file):
        raise FailedPrecondition(f"{file} holds this node's key and can be read by others; mend: chmod 600 {file}")
    return settings
