"""`s2cs nodes add`: what a further gateway node needs to start, in one file."""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from s2cs.settings import LOCAL, NODE_NAME, Settings
from s2cs.settings_file import SettingsError, load
from s2cs.setup import address_of, write_whole
from scistream.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, Rate, shown
from scistream.x509 import node_name, pinned

_DAYS = 825
_BUNDLE = """\
# The settings of gateway node {name}, with its key: keep it secret. Start it with: s2cs s2ds --config THIS-FILE

[server]
name = "{name}"
listen = ["{address}"]  # S2CS alone is let in here
state_dir = "state"
certificate = \"\"\"
{certificate}\"\"\"
key = \"\"\"
{key}\"\"\"
gateways = [\"\"\"
{gateway}\"\"\"]

[network]
lan = "{lan}"  # applications connect here, and are reached from here
wan = "{wan}"  # other facilities' gateways connect here
ports = "{ports}"  # listeners are reserved in this range; open it in the firewall on the WAN side

[s2ds]
backend = "{backend}"
"""


def add(file: Path, name: str, at: str, lan: str, wan: str, ports: str, rate: str, bundle: Path) -> None:
    """Make a node's certificate and settings, and name it in the gateway's.

    Args:
        file: the gateway's settings.
        name: the node's.
        at: HOST:PORT where S2CS reaches it.
        lan: its address in the LAN; empty is that of `at`.
        wan: its address in the WAN; empty is that in the LAN.
        ports: its range; empty is the gateway's.
        rate: what its sessions may reserve; empty is no limit.
        bundle: the file to write.

    Raises:
        AlreadyExists: there is such a node, or such a file.
        InvalidArgument: an option cannot be used.
        FailedPrecondition: a file cannot be written.
        SettingsError: the gateway's settings would not be good any more; they are left as they are.
    """
    settings = load(file)
    if not NODE_NAME.fullmatch(name) or name == LOCAL:
        raise InvalidArgument(
            f"node name {shown(name)} is not 1 to 32 lower-case letters, digits and dashes; {LOCAL} is this host"
        )
    if any(node.name == name for node in settings.s2ds.nodes):
        raise AlreadyExists(f"there is a node {name} already; take its [[s2ds.nodes]] out of {file} first")
    if bundle.exists():
        raise AlreadyExists(f"{bundle} is there already; name another file with --bundle, or move it away")
    address = Endpoint.parse(at)
    lan = address_of("--lan", lan or address.host)
    wan = address_of("--wan", wan or lan)
    range_ = PortRange.parse(ports) if ports else settings.network.ports
    if range_.first <= address.port <= range_.last:
        raise InvalidArgument(f"port {address.port} of {address} is among the sessions' ports {range_}; move one")
    entry = f'\n[[s2ds.nodes]]\nname = "{name}"\naddress = "{address}"\ncertificate = "{{certificate}}"\n'
    entry += f'lan = "{lan}"\nwan = "{wan}"\n'
    if rate:
        Rate.parse(rate)
        entry += f'rate = "{rate}"\n'
    certificate = settings.s2ds.certificate.parent / "nodes" / f"{name}.crt"
    made: list[Path] = []
    try:
        gateway = _own_certificate(settings)
        own, key = pinned(node_name(name), ExtendedKeyUsageOID.SERVER_AUTH, _end())
        certificate.parent.mkdir(mode=0o700, exist_ok=True)
        write_whole(certificate, own.pem, 0o644)
        made.append(certificate)
        text = _BUNDLE.format(
            name=name,
            address=address,
            certificate=own.pem.decode(),
            key=key.pem.decode(),
            gateway=gateway.decode(),
            lan=lan,
            wan=wan,
            ports=range_,
            backend=settings.s2ds.backend,
        )
        write_whole(bundle, text.encode(), 0o600)
        made.append(bundle)
        _append(file, entry.format(certificate=os.path.relpath(certificate, file.resolve().parent)))
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            where = error.filename or certificate
            raise FailedPrecondition(f"{where} cannot be written: {error.strerror}; mend its owner") from None
        raise


def _end() -> datetime:
    return datetime.now(UTC) + timedelta(days=_DAYS)


def _own_certificate(settings: Settings) -> bytes:
    """Give the certificate with which S2CS proves itself to nodes, in PEM; it is made for the first of them."""
    certificate, key = settings.s2ds.certificate, settings.s2ds.key
    if not certificate.exists():
        name = f"{settings.server.name.lower()}.s2cs.scistream.internal"
        made, made_key = pinned(name, ExtendedKeyUsageOID.CLIENT_AUTH, _end())
        write_whole(key, made_key.pem, 0o600)
        write_whole(certificate, made.pem, 0o644)
    return certificate.read_bytes()


def _append(file: Path, entry: str) -> None:
    """Add to the settings, if they are good with it."""
    text = file.read_text(encoding="utf-8") + entry
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.chmod(file.stat().st_mode & 0o777)
        try:
            load(draft)
        except SettingsError as error:
            raise SettingsError(f"{file} cannot take the node: {str(error).replace(str(draft), str(file))}") from None
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)
