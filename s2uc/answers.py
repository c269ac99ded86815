"""What a gateway answers, before anything is done with it.

A gateway may be broken, newer, or somebody's who means ill. Its texts end up on a terminal, so nothing in
them may steer one; its times, states and addresses have to be such.
"""

from __future__ import annotations

from collections.abc import MutableMapping, MutableSequence
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

import scistream
from scistream.errors import ScistreamError, Unavailable
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, parse_endpoints, printable

_M = TypeVar("_M", bound=Message)


def sound(answer: _M, gateway: object) -> _M:
    """Give an answer back with its texts made printable, in place.

    Raises:
        Unavailable: there is something in it that no gateway would say.
    """
    try:
        _look(answer)
    except (ValueError, OverflowError, ScistreamError) as error:
        raise Unavailable(
            f"gateway {gateway}: its answer cannot be used ({printable(str(error))}); "
            f"is it a gateway, and of a version near {scistream.__version__}?"
        ) from None
    return answer


def _look(message: Message) -> None:
    match message:
        case Timestamp():
            message.ToDatetime()
        case pb.Response() | pb.AppResponse():
            State(message.state or State.REQUESTED)  # existing gateways say none
            parse_endpoints(message.listeners)
        case pb.SessionInfo():
            Role.parse(message.role)
            State(message.state)
        case pb.SessionEvent():
            parse_endpoints(message.session.prod_listeners)
            if message.kind not in pb.SessionEvent.Kind.values():
                message.kind = pb.SessionEvent.UNSPECIFIED  # a newer gateway's
        case _:
            pass
    for field, value in message.ListFields():
        if isinstance(value, str):
            if not value.isprintable():
                setattr(message, field.name, printable(value))
        elif isinstance(value, Message):
            _look(value)
        elif isinstance(value, MutableMapping):
            _look_at_map(value)
        elif isinstance(value, MutableSequence):
            _look_at_list(value)


def _look_at_map(entries: MutableMapping[str, str]) -> None:
    if not all(text.isprintable() for entry in entries.items() for text in entry):
        cleaned = {printable(key): printable(value) for key, value in entries.items()}
        entries.clear()
        entries.update(cleaned)


def _look_at_list(values: MutableSequence[Any]) -> None:
    for i, value in enumerate(values):
        if isinstance(value, Message):
            _look(value)
        elif isinstance(value, str) and not value.isprintable():
            values[i] = printable(value)
