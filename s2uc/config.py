"""What a user keeps: the gateways known, with their tokens, and the sessions asked for.

`gateways/NAME.json`, `logins/NAME.json` and `sessions/UID.json`, each written whole, mode 0600, in directories of 0700.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2uc.files import private_directory, read_secret_json, remove, write_secret
from scistream.errors import FailedPrecondition, InvalidArgument, NotFound
from scistream.vocabulary import Endpoint, Role, Uid, meant, parse_endpoints, shown

if TYPE_CHECKING:  # commands that speak with no gateway do not pay for gRPC
    from s2uc.gateway import Gateway

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_GATEWAY_FILE, _SESSION_FILE = "a gateway file of s2uc", "a session file of s2uc"


@dataclass(frozen=True, slots=True)
class KnownGateway:
    """A gateway as it is on file."""

    name: str
    endpoint: Endpoint
    ca_pem: str = ""
    token: str = field(default="", repr=False)
    certificate: str = ""  # the file, read when it is used: certificates of people are renewed
    key: str = ""
    store: str = ""  # where tokens are that this file does not hold: a name of `s2uc.login.vault`
    directory: Path | None = field(default=None, repr=False, compare=False)
    others: tuple[Endpoint, ...] = ()  # further addresses

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidArgument(
                f"gateway name {shown(self.name)} is not 1 to 63 letters, digits, dots, dashes and underscores"
            )

    def live(self) -> Gateway:
        """Give what a client takes."""
        from s2uc.gateway import Gateway  # noqa: PLC0415

        source = None
        if self.store and self.directory:
            from s2uc.login.kept import Kept  # noqa: PLC0415

            source = Kept(self.directory, self.name, self.store)
        certificate = key = None
        if self.certificate:
            from s2uc.login.pair import read_pair  # noqa: PLC0415

            certificate, key = read_pair(self.certificate, self.key)
        ca_pem = self.ca_pem.encode() or None
        return Gateway(self.name, self.endpoint, ca_pem, self.token, certificate, key, source, self.others)

    @property
    def address(self) -> str:
        """Where it is: `HOST:PORT`, or several of them with commas between."""
        return ",".join(map(str, (self.endpoint, *self.others)))

    @property
    def credentials(self) -> str:
        """Say what shows who the user is there: token, login, certificate, or nothing."""
        return "login" if self.store else "token" if self.token else "certificate" if self.certificate else ""


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session that this user asked for: where it lives, and its applications' keys."""

    uid: Uid
    gateways: Mapping[Role, str]
    keys: Mapping[Role, str] = field(default_factory=dict, repr=False)
    expires_at: datetime | None = None


class UserConfig:
    """The user's directory. Nothing is made until something is written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def locate(cls, directory: str | None = None) -> UserConfig:
        """Find it: as given, else by SCISTREAM_CONFIG_DIR, else ~/.config/scistream."""
        found = directory or os.environ.get("SCISTREAM_CONFIG_DIR") or "~/.config/scistream"
        try:
            return cls(Path(found).expanduser())
        except RuntimeError:
            raise InvalidArgument(
                f"there is no home directory for {shown(found)}; name one with --config DIR or SCISTREAM_CONFIG_DIR"
            ) from None

    def gateways(self) -> list[KnownGateway]:
        """All gateways known, by name."""
        return [self._read_gateway(path) for path in self._files("gateways")]

    def gateway(self, name: str) -> KnownGateway:
        """Look a gateway up.

        Raises:
            InvalidArgument: none of that name.
        """
        return self._read_gateway(self._gateway_path(name))

    def _gateway_path(self, name: str) -> Path:
        path = self._path("gateways", name) if _NAME.fullmatch(name) else None
        if path is None or not path.exists():
            names = [path.stem for path in self._files("gateways")]
            known = ", ".join(names) or "none yet"
            raise InvalidArgument(
                f"gateway {shown(name)} is not known{meant(name, names)} (known: {known}); "
                "run: s2uc gateway add NAME HOST:PORT"
            )
        return path

    def save_gateway(self, gateway: KnownGateway) -> None:
        """Keep a gateway, new or changed."""
        content = {
            "name": gateway.name,
            "address": gateway.address,
            "ca": gateway.ca_pem,
            "token": gateway.token,
            "certificate": gateway.certificate,
            "key": gateway.key,
            "store": gateway.store,
        }
        self._write("gateways", gateway.name, content)

    def knows_login(self, name: str) -> bool:
        """True when tokens are kept for a gateway beside its file."""
        path = self._path("gateways", name)
        try:
            return path.exists() and bool(self._read_gateway(path).store)
        except InvalidArgument:  # a damaged file
            return False

    def forget_gateway(self, name: str) -> None:
        """Remove a gateway and its token; a damaged file, too."""
        remove(self._gateway_path(name))

    def find_session(self, uid: Uid) -> SessionRecord | None:
        """Look a session up."""
        path = self._path("sessions", uid)
        if not path.exists():
            return None
        content = read_secret_json(path, _SESSION_FILE)
        try:
            expires_at = datetime.fromisoformat(content["expires_at"]) if content["expires_at"] else None
            if expires_at and expires_at.tzinfo is None:
                raise ValueError("a time of no zone")
            return SessionRecord(
                Uid(content["uid"]),
                {Role(role): str(name) for role, name in content["gateways"].items()},
                {Role(role): str(key) for role, key in content["keys"].items()},
                expires_at,
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidArgument(f"{path} is not {_SESSION_FILE}; remove it") from None

    def session(self, uid: Uid) -> SessionRecord:
        """Look a session up.

        Raises:
            NotFound: this user's directory has none of that uid.
        """
        found = self.find_session(uid)
        if found is None:
            raise NotFound(f"session {uid} is not in {self.directory}; name its gateway, or use another --config")
        return found

    def session_uids(self) -> list[str]:
        """Name the sessions on file."""
        return [path.stem for path in self._files("sessions")]

    def save_session(self, record: SessionRecord) -> None:
        """Keep a session; those that have expired are cleared away."""
        self._prune()
        content = {
            "uid": record.uid,
            "gateways": dict(record.gateways),
            "keys": dict(record.keys),
            "expires_at": record.expires_at.isoformat() if record.expires_at else None,
        }
        self._write("sessions", record.uid, content)

    def forget_session(self, uid: Uid) -> None:
        """Remove what is kept of a session."""
        with suppress(FailedPrecondition):  # then it stays until it can be cleared away
            remove(self._path("sessions", uid))

    def _prune(self) -> None:
        now = datetime.now(UTC)
        for path in self._files("sessions"):
            try:
                record = self.find_session(Uid(path.stem))
            except InvalidArgument:
                continue
            if record and record.expires_at and record.expires_at < now:
                with suppress(FailedPrecondition):
                    remove(path)

    def _read_gateway(self, path: Path) -> KnownGateway:
        content = read_secret_json(path, _GATEWAY_FILE)
        try:
            endpoint, *others = parse_endpoints(content["address"].split(","))
            return KnownGateway(
                content["name"],
                endpoint,
                str(content["ca"]),
                str(content["token"]),
                str(content.get("certificate", "")),
                str(content.get("key", "")),
                str(content.get("store", "")),
                self.directory,
                tuple(others),
            )
        except (KeyError, TypeError, AttributeError, InvalidArgument):
            raise InvalidArgument(f"{path} is not {_GATEWAY_FILE}; remove it and add the gateway again") from None

    def _files(self, kind: str) -> Iterator[Path]:
        return iter(sorted((self.directory / kind).glob("[!.]*.json")))

    def _path(self, kind: str, name: str) -> Path:
        return self.directory / kind / f"{name}.json"

    def _write(self, kind: str, name: str, content: dict[str, Any]) -> None:
        path = self._path(kind, name)
        for directory in (self.directory, path.parent):
            private_directory(directory)
        write_secret(path, json.dumps(content, indent=1) + "\n")


def known_gateway(name: str, config: str | None = None) -> Gateway:
    """Give a gateway that `s2uc gateway add` made known.

    Args:
        name: the user's word for it.
        config: the directory of the user's configuration; None is the default one.

    Raises:
        InvalidArgument: none of that name.
    """
    return UserConfig.locate(config).gateway(name).live()
