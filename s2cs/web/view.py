"""What the page shows: what the API says of the gateway and the caller's sessions, at one moment."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from contextlib import suppress
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from s2cs.auth import Caller
from s2cs.gateway import Gateway
from s2cs.live import Listed
from s2cs.s2ds.contract import Traffic
from s2cs.servicer import Servicer
from scistream.errors import ScistreamError
from scistream.machine import Session
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role

_MOST_EVENTS = 200  # that are remembered
_AT_ONCE = 100  # sessions; some milliseconds
_EACH_S, _SESSIONS_A_SECOND = 1.0, 200  # a long list comes less often


class View:
    """Look at a gateway as a caller may see it.

    Args:
        gateway: whose sessions are listed, by the call that also answers the API's `list`.
        servicer: which puts a session in the API's words.
    """

    def __init__(self, gateway: Gateway, servicer: Servicer) -> None:
        self._gateway = gateway
        self._servicer = servicer
        self._events: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST_EVENTS)  # with the owners' ids
        self._number = 0
        gateway.observers.append(self._stepped)

    async def frame(self, caller: Caller) -> tuple[str, float]:
        """Give all that is shown, in JSON, and in how many seconds it is to be looked at again."""
        listed = await self._gateway.list(caller)
        sessions = []
        for number, each in enumerate(listed, 1):
            sessions.append(self._session(each))
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a long list holds nobody else up
        told = {
            "at": time.time(),
            "gateway": _plain(await self._servicer.describe(pb.DescribeRequest(), None)),
            "capacity": self._capacity(caller),
            "sessions": sessions,
            "events": [event for owner, event in self._events if caller.operator or owner == caller.id],
        }
        return json.dumps(told, separators=(",", ":")), max(_EACH_S, len(listed) / _SESSIONS_A_SECOND)

    async def session(self, caller: Caller, uid: str) -> str:
        """Give one session, in JSON.

        Raises:
            NotFound: the caller has no such session.
            InvalidArgument: that is no uid.
        """
        (found,) = await self._gateway.list(caller, uid)
        return json.dumps(self._session(found))

    def _session(self, listed: Listed) -> dict[str, Any]:
        """Put a session as the API does, with what its proxy does now."""
        tunnel = listed.tunnel
        info = self._servicer.info(listed.session, tunnel, listed.traffic)
        return {**_plain(info), "key": listed.session.id, "proxy": str(tunnel.state) if tunnel else ""}

    def _capacity(self, caller: Caller) -> dict[str, Any]:
        """Say what is used of what there is; what all users use together is told to operators."""
        gateway, limits = self._gateway, self._gateway.settings.limits
        ports = gateway.data_server.most_ports()
        told: dict[str, Any] = {
            "ports": {str(role): {"used": ports - gateway.data_server.free_ports(role), "most": ports} for role in Role}
        }
        with suppress(ScistreamError):
            told["draining"] = gateway.draining
        if caller.operator:
            held = gateway.held
            told["sessions"] = {"used": held.sessions, "most": limits.sessions}
            told["connections"] = {"used": held.connections, "most": limits.connections}
            told["rate"] = {"used": held.rate.bytes_per_s, "most": limits.rate.bytes_per_s}
        return told

    def _stepped(self, before: Session, after: Session, traffic: Traffic | None, now: float) -> None:
        """Remember a change of state."""
        if before.state is not after.state:
            self._number += 1
            event = {
                "number": self._number,
                "at": time.time(),
                "uid": after.uid,
                "role": str(after.role),
                "owner": after.owner.name,
                "state": str(after.state),
                "reason": after.reason,
            }
            self._events.append((after.owner.id, event))


def _plain(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
