"""Who one is to a gateway, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from s2uc.gateway import TIMEOUT_S, Gateway, GatewayClient


@dataclass(frozen=True, slots=True)
class Who:
    """What a gateway says.

    Args:
        name: the gateway's own word for itself.
        version: of its software.
        user: the name that policy and other people see.
        role: user, operator or admin.
        method: token, oidc, introspection or certificate.
        scopes: what the credentials are for: sessions, read, admin.
        groups: the user's.
        until: the end of the credentials (UTC); None is no end.
        backends: the proxies that it can run.
    """

    name: str
    version: str
    user: str
    role: str
    method: str
    scopes: tuple[str, ...]
    groups: tuple[str, ...]
    until: datetime | None
    backends: tuple[str, ...]

    @property
    def admin(self) -> bool:
        """True for who may everything."""
        return self.role == "admin"

    def as_dict(self) -> dict[str, Any]:
        """Give what `--json` prints."""
        return {
            "name": self.name,
            "version": self.version,
            "user": self.user,
            "admin": self.admin,
            "role": self.role,
            "method": self.method,
            "scopes": list(self.scopes),
            "groups": list(self.groups),
            "until": self.until.isoformat() if self.until else None,
            "backends": list(self.backends),
        }

    def __str__(self) -> str:
        groups = f", in {', '.join(self.groups)}" if self.groups else ""
        until = f", until {self.until:%Y-%m-%d %H:%M} UTC" if self.until else ""
        return f"{self.user} ({self.role}{groups}) by {self.method} for {', '.join(self.scopes)}{until}"


async def ask_who(gateway: Gateway, timeout: float = TIMEOUT_S) -> Who:
    """Ask a gateway who its caller is.

    Raises:
        Unauthenticated: nobody to it.
    """
    async with GatewayClient(gateway, timeout) as client:
        found = await client.describe()
    ends = found.HasField("authenticated_until")
    return Who(
        found.name,
        found.version,
        found.user,
        found.role or ("admin" if found.admin else "user"),
        found.method or "token",
        tuple(found.scopes),
        tuple(found.groups),
        found.authenticated_until.ToDatetime(tzinfo=UTC) if ends else None,
        tuple(backend.name for backend in found.backends if backend.available),
    )
