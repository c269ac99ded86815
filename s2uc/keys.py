"""What an application needs to say Hello, in one file: its key, and where its gateway is.

A batch job gets this file and nothing else of its user's. It opens one side of one session only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from s2uc.app import Way, open_way
from s2uc.files import read_secret, write_secret
from s2uc.gateway import Gateway
from scistream.errors import FailedPrecondition, InvalidArgument, ScistreamError
from scistream.vocabulary import Endpoint, Role, Uid, parse_endpoints


@dataclass(frozen=True, slots=True)
class AppKey:
    """One application's way to its gateway, for one session.

    It can be pickled, so it can be the argument of a function that runs elsewhere.

    Args:
        uid: the session.
        role: the application's side of it.
        gateway: that side's; its token is the application's key.
    """

    uid: Uid
    role: Role
    gateway: Gateway

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a key file.

        Raises:
            InvalidArgument: there is none, others can read it, or it is something else.
        """
        return cls._read(read_secret(Path(path)), path)

    @classmethod
    def _read(cls, text: str, path: str | Path) -> Self:
        try:
            content = json.loads(text)
            endpoint, *others = parse_endpoints(content["address"].split(","))
            ca = content["ca"].encode() or None
            gateway = Gateway(str(content["gateway"]), endpoint, ca, str(content["key"]), others=tuple(others))
            return cls(Uid(content["uid"]), Role.parse(content["role"]), gateway)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ScistreamError):
            raise InvalidArgument(f"{path} is not a key file of s2uc request --key-dir") from None

    def wait(self, prod_listeners: Iterable[str | Endpoint] = (), timeout: float | None = None) -> Way:
        """Say Hello for the application, and return when the way is open; with asyncio it is `open_way`.

        Args:
            prod_listeners: where ProdApp listens, as `HOST:PORT`; ConsApp has none, nor one whose user has said so.
            timeout: seconds for all of it; None means as long as the session lives.

        Raises:
            DeadlineExceeded: the time is up, or the session's is.
            FailedPrecondition: the session has ended, or leads to other addresses already.
            InvalidArgument: an address that cannot be one, or that the gateway does not forward to.
            NotFound: no such session, or not this one's key.
            Unavailable: the gateway does not answer.
        """
        from s2uc.blocking import wait_for  # noqa: PLC0415 - it knows sessions, which know keys

        listeners = parse_endpoints(map(str, prod_listeners))
        return wait_for(open_way(self.gateway, self.uid, self.role, listeners, timeout))

    def save(self, path: str | Path) -> None:
        """Write it, for this user's eyes only: what `s2uc run --key-file` takes.

        Raises:
            FailedPrecondition: the system does not let it be written.
        """
        path, gateway = Path(path), self.gateway
        content = {
            "kind": "scistream-app-key",
            "uid": self.uid,
            "role": self.role,
            "gateway": gateway.name,
            "address": ",".join(map(str, gateway.endpoints)),
            "ca": (gateway.ca_pem or b"").decode(),
            "key": gateway.token,
        }
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FailedPrecondition(f"{path.parent} cannot be made: {error.strerror}") from None
        write_secret(path, json.dumps(content, indent=1) + "\n")


def read_key(path: Path, uid: Uid, role: Role) -> AppKey | str:
    """Read a key file; a file with nothing but the key gives just that.

    Raises:
        InvalidArgument: others can read it, it is none, or it is for another session or side.
    """
    text = read_secret(path).strip()
    if text and not text.startswith("{"):
        return text
    key = AppKey._read(text, path)
    if (key.uid, key.role) != (uid, role):
        raise InvalidArgument(f"{path} is the key of the {key.role} side of session {key.uid}; take the one for yours")
    return key
