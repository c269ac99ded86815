"""What an application needs to say Hello, in one file: its key, and where its gateway is.

A batch job gets this file and nothing else of its user's. It opens one side of one session only.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from s2uc.files import read_secret, write_secret
from s2uc.gateway import Gateway
from scistream.errors import FailedPrecondition, InvalidArgument, ScistreamError
from scistream.vocabulary import Endpoint, Role, Uid


@dataclass(frozen=True, slots=True)
class AppKey:
    """One application's way to its gateway, for one session."""

    uid: Uid
    role: Role
    gateway: Gateway  # its token is the application's key

    def save(self, path: Path) -> None:
        """Write it, for this user's eyes only."""
        gateway = self.gateway
        content = {
            "kind": "scistream-app-key",
            "uid": self.uid,
            "role": self.role,
            "gateway": gateway.name,
            "address": str(gateway.endpoint),
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
    try:
        content = json.loads(text)
        endpoint, ca = Endpoint.parse(content["address"]), content["ca"].encode() or None
        gateway = Gateway(str(content["gateway"]), endpoint, ca, str(content["key"]))
        key = AppKey(Uid(content["uid"]), Role.parse(content["role"]), gateway)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ScistreamError):
        raise InvalidArgument(f"{path} is not a key file of s2uc request --key-dir") from None
    if (key.uid, key.role) != (uid, role):
        raise InvalidArgument(f"{path} is the key of the {key.role} side of session {key.uid}; take the one for yours")
    return key
