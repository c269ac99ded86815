"""What a gateway answers, before anything is done with it.

A gateway may be broken, newer, or somebody's who means ill. Its texts end up on a terminal, so nothing in
them may steer one; its times, states and addresses have to be such.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, MutableSequence
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

import scistream
from scistream.errors import ScistreamError, Unavailable
from scistream.machine import State
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, parse_endpoints, printable

_DAY_S = 86_400
_ROLES, _STATES = frozenset(map(str, Role)), frozenset(map(str, State))
_TIMES = range(-62_135_596_800 + _DAY_S, 253_402_300_800 - _DAY_S)  # years 1 to 9999, in any time zone

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
    """Judge what is no text, and make printable what is: a thousand sessions in one answer are some thousand texts."""
    shape = _shape(message.DESCRIPTOR)
    if shape.judge is not None:
        shape.judge(message)
    if not "".join(shape.texts(message)).isprintable():
        for name in shape.names:
            setattr(message, name, printable(getattr(message, name)))
    for name in shape.lists:
        _look_at_list(getattr(message, name))
    for name in shape.maps:
        if entries := getattr(message, name):
            _look_at_map(entries)
    for name in shape.times:
        if message.HasField(name):
            _judge_time(getattr(message, name))
    for name in shape.ones:
        if message.HasField(name):
            _look(getattr(message, name))
    for name in shape.many:
        for each in getattr(message, name):
            _look(each)


class _Shape:
    """Which fields of a kind of message there are to look at."""

    def __init__(self, descriptor: Descriptor) -> None:
        texts = [field for field in descriptor.fields if field.type == FieldDescriptor.TYPE_STRING]
        inner = {field.name: kind for field in descriptor.fields if (kind := field.message_type) and _matters(kind)}
        times = [field for field in descriptor.fields if field.message_type is Timestamp.DESCRIPTOR]
        self.judge = _JUDGES.get(descriptor.full_name)
        self.names = [field.name for field in texts if not field.is_repeated]
        self.texts = _getter(self.names)
        self.lists = [field.name for field in texts if field.is_repeated]
        self.maps = [name for name, kind in inner.items() if kind.GetOptions().map_entry]
        self.times = [field.name for field in times]
        repeated = {field.name for field in descriptor.fields if field.is_repeated}
        self.ones = [name for name in inner if name not in repeated]
        self.many = [name for name in inner if name in repeated and name not in self.maps]


_shape = cache(_Shape)


def _getter(names: list[str]) -> Callable[[Message], tuple[str, ...]]:
    """Read fields all at once."""
    match names:
        case []:
            return lambda message: ()
        case [name]:
            return lambda message: (getattr(message, name),)
        case _:
            return attrgetter(*names)


def _matters(descriptor: Descriptor) -> bool:
    """Tell whether there is anything to look at in a kind of message."""
    shape = _shape(descriptor)
    return any((shape.judge, shape.names, shape.lists, shape.maps, shape.times, shape.ones, shape.many))


def _look_at_map(entries: MutableMapping[str, str]) -> None:
    if not all(text.isprintable() for entry in entries.items() for text in entry):
        cleaned = {printable(key): printable(value) for key, value in entries.items()}
        entries.clear()
        entries.update(cleaned)


def _look_at_list(values: MutableSequence[str]) -> None:
    if not "".join(values).isprintable():
        values[:] = map(printable, values)


def _judge_time(message: Any) -> None:
    if message.seconds not in _TIMES or not 0 <= message.nanos < 10**9:
        raise ValueError(f"{message.seconds} s is no time")


def _judge_answer(message: Any) -> None:
    State(message.state or State.REQUESTED)  # existing gateways say none
    parse_endpoints(message.listeners)


def _judge_session(message: Any) -> None:
    if message.role not in _ROLES or message.state not in _STATES:
        Role.parse(message.role)
        State(message.state)


def _judge_role(message: Any) -> None:
    Role.parse(message.role)


def _judge_state(message: Any) -> None:
    State(message.state)


def _judge_event(message: Any) -> None:
    parse_endpoints(message.session.prod_listeners)
    if message.kind not in pb.SessionEvent.Kind.values():
        message.kind = pb.SessionEvent.UNSPECIFIED  # a newer gateway's


_JUDGES: dict[str, Callable[[Any], None]] = {
    kind.DESCRIPTOR.full_name: judge
    for kind, judge in (
        (pb.Response, _judge_answer),
        (pb.AppResponse, _judge_answer),
        (pb.SessionInfo, _judge_session),
        (pb.SessionEvent, _judge_event),
        (pb.SessionLog, _judge_role),
        (pb.SessionChange, _judge_state),
        (pb.Verification, _judge_role),
    )
}
