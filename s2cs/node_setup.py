"""`s2cs nodes add` and `remove`: what a further gateway node needs to start, in one file, and its end here."""

from __future__ import annotations

import fcntl
import os
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

from cryptography.x509.oid import ExtendedKeyUsageOID

from s2cs.settings import LOCAL, NODE_NAME, Node, Settings
from s2cs.settings_file import SettingsError, load
from s2cs.setup import address_of, write_whole
from scistream.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
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
wan_port = {wan_port}  # one for all sessions that come in here, as at the gateway; 0: ports of their own

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
    with _alone(file):
        _add(file, name, at, lan, wan, ports, rate, bundle)


def _add(file: Path, name: str, at: str, lan: str, wan: str, ports: str, rate: str, bundle: Path) -> None:
    settings = load(file)
    if not NODE_NAME.fullmatch(name) or name == LOCAL:
        raise InvalidArgument(
            f"node name {shown(name)} is not 1 to 32 lower-case letters, digits and dashes; {LOCAL} is this host"
        )
    if any(node.name == name for node in settings.s2ds.nodes):
        raise AlreadyExists(f"there is a node {name} already; remove it first: s2cs nodes remove {name}")
    if bundle.exists():
        raise AlreadyExists(f"{bundle} is there already; name another file with --bundle, or move it away")
    address = Endpoint.parse(at)
    lan = address_of("--lan", lan or address.host)
    wan = address_of("--wan", wan or lan)
    range_ = PortRange.parse(ports) if ports else settings.network.ports
    if range_.first <= address.port <= range_.last:
        raise InvalidArgument(f"port {address.port} of {address} is among the sessions' ports {range_}; move one")
    if (address.host, address.port) == (wan, settings.network.wan_port):
        raise InvalidArgument(f"port {address.port} of {address} is the node's wan_port, too; move one")
    entry = f'\n[[s2ds.nodes]]\nname = "{name}"\naddress = "{address}"\ncertificate = "{{certificate}}"\n'
    entry += f'lan = "{lan}"\nwan = "{wan}"\n'
    if rate:
        Rate.parse(rate)
        entry += f'rate = "{rate}"\n'
    certificate = _certificate(settings, name)
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
            wan_port=settings.network.wan_port,
            backend=settings.s2ds.backend,
        )
        write_whole(bundle, text.encode(), 0o600)
        made.append(bundle)
        entry = entry.format(certificate=os.path.relpath(certificate, file.resolve().parent))
        _put(file, file.read_text(encoding="utf-8") + entry)
    except BaseException as error:
        for path in made:
            with suppress(OSError):
                path.unlink()
        if isinstance(error, OSError):
            where = error.filename or certificate
            raise FailedPrecondition(f"{where} cannot be written: {error.strerror}; mend its owner") from None
        raise


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Let no other command change these settings, and the certificates beside them, meanwhile."""
    load(file)  # which says what is wrong with it
    directory = os.open(file.resolve().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


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


def remove(file: Path, name: str) -> None:
    """Take a node, and its certificate, out of the gateway's settings.

    Args:
        file: the gateway's settings.
        name: the node's.

    Raises:
        NotFound: there is no such node.
        FailedPrecondition: it cannot be told from the rest of the file, which cannot be changed, or a file cannot be
            written.
        SettingsError: the settings would not be good without it; they are left as they are.
    """
    with _alone(file):
        _remove(file, name)


def _remove(file: Path, name: str) -> None:
    settings = load(file)
    node = node_of(settings, name)
    left = tuple(each for each in settings.s2ds.nodes if each is not node)
    kept = _without(file.read_text(encoding="utf-8"), name)
    by_hand = FailedPrecondition(f"node {name} cannot be told from the rest of {file}; take its lines out by hand")
    try:
        if kept is None or not _put(file, kept, lambda now: now.s2ds.nodes == left):
            raise by_hand
        if node.certificate == _certificate(settings, name):
            node.certificate.unlink(missing_ok=True)
    except OSError as error:
        raise FailedPrecondition(f"{error.filename} cannot be written: {error.strerror}; mend its owner") from None


def node_of(settings: Settings, name: str) -> Node:
    """Find a node by name.

    Raises:
        NotFound: there is none of that name.
    """
    for node in settings.s2ds.nodes:
        if node.name == name:
            return node
    names = ", ".join(node.name for node in settings.s2ds.nodes)
    raise NotFound(f"there is no node {shown(name)}; " + (f"use {names}" if names else "there is none but this host"))


def _certificate(settings: Settings, name: str) -> Path:
    return settings.s2ds.certificate.parent / "nodes" / f"{name}.crt"


def _without(text: str, name: str) -> str | None:
    """Leave a node's table out of settings; None if it is not found in them."""
    lines = text.splitlines(keepends=True)
    begins = [i for i, line in enumerate(lines) if line.lstrip().startswith("[")] + [len(lines)]
    for begin, end in pairwise(begins):
        if not lines[begin].lstrip().startswith("[[s2ds.nodes]]"):
            continue
        with suppress(tomllib.TOMLDecodeError):
            if tomllib.loads("".join(lines[begin:end]))["s2ds"]["nodes"][0].get("name") == name:
                return "".join([*lines[:begin], *lines[end:]]).rstrip("\n") + "\n"
    return None


def _put(file: Path, text: str, good: Callable[[Settings], bool] = lambda now: True) -> bool:
    """Change the settings, if they are good and as they are meant then; whether they were."""
    draft = file.with_name(f".{file.name}.new")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.chmod(file.stat().st_mode & 0o777)
        try:
            then = load(draft)
        except SettingsError as error:
            why = str(error).replace(str(draft), str(file))
            raise SettingsError(f"{file} cannot have its nodes changed: {why}") from None
        if not good(then):
            return False
        draft.replace(file)
        return True
    finally:
        draft.unlink(missing_ok=True)
