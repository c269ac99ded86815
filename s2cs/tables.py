"""What tables of settings are made of."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from scistream.errors import InvalidArgument
from scistream.vocabulary import Endpoint, PortRange, parse_duration


class Table(BaseModel):
    """A table of settings: unknown keys are faults, and nothing changes after it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, arbitrary_types_allowed=True)


def others_can_read(file: Path) -> bool:
    """Tell whether a file with a secret can be read by others than this process's user.

    A Secret in a pod is root's, and given to the pod's user by a group of the pod's own.

    Raises:
        OSError: it cannot be looked at.
    """
    status = file.stat()
    given = status.st_uid == 0 != os.geteuid() and status.st_gid in {os.getegid(), *os.getgroups()}
    return bool(status.st_mode & (0o037 if given else 0o077))


def read_by(parse: Any) -> BeforeValidator:
    """Let a type of the vocabulary read a setting's text."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError("give it as text, in quotes")
        try:
            return parse(value)
        except InvalidArgument as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(read)


def _duration(value: object) -> object:
    try:
        return parse_duration(value) if isinstance(value, str) else value
    except InvalidArgument as error:
        raise ValueError(str(error)) from None


Duration = Annotated[int, BeforeValidator(_duration), Field(ge=1)]
Listen = Annotated[Endpoint, read_by(Endpoint.parse)]


def _ip(value: object) -> str:
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        raise ValueError("use one IPv4 or IPv6 address; a name is not enough") from None
    if address.is_unspecified:
        raise ValueError("name one address of this host, not all of them; others have to reach it")
    return str(address)


Address = Annotated[str, BeforeValidator(_ip)]
Ports = Annotated[PortRange, read_by(PortRange.parse)]
