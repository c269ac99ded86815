"""A client of the field's first implementation: it knows the first fields of four messages, and nothing else.

Its messages are made here from a description of its own, not from the product's: what it cannot know it cannot send.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from scistream.wire import grpc

_TEXT, _TEXTS, _NUMBER = "string", "repeated string", "int32"
_MESSAGES = {
    "Request": {"uid": _TEXT, "role": _TEXT, "num_conn": _NUMBER, "rate": _NUMBER},
    "Response": {"listeners": _TEXTS, "prod_listeners": _TEXTS},
    "Hello": {"uid": _TEXT, "prod_listeners": _TEXTS, "role": _TEXT},
    "AppResponse": {"message": _TEXT, "listeners": _TEXTS},
    "UpdateTargets": {"uid": _TEXT, "remote_listeners": _TEXTS, "role": _TEXT},
    "Release": {"uid": _TEXT},
}
_METHODS = {
    "req": ("Request", "Response"),
    "hello": ("Hello", "AppResponse"),
    "update": ("UpdateTargets", "Response"),
    "release": ("Release", "Response"),
}
HELLO_AFTER_S = 0.5


def _made() -> dict[str, Any]:
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="old_scistream.proto", package="scistream", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (key, kind) in enumerate(fields.items(), 1):
            label = field.LABEL_REPEATED if kind == _TEXTS else field.LABEL_OPTIONAL
            type = field.TYPE_INT32 if kind == _NUMBER else field.TYPE_STRING
            message.field.add(name=key, number=number, type=type, label=label)
    pool = descriptor_pool.DescriptorPool()  # of its own: the names are those of the product's
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"scistream.{name}")) for name in _MESSAGES
    }


_CLASSES = _made()


class OldClient:
    """One gateway as an old client sees it. No call has a deadline."""

    def __init__(self, channel: grpc.Channel, authorization: str | None = "INVALID_TOKEN") -> None:
        self._channel = channel
        self._metadata = [] if authorization is None else [("authorization", authorization)]

    def call(self, method: str, **fields: Any) -> Any:
        """Call and wait, as long as it takes."""
        return self.start(method, **fields).result()

    def start(self, method: str, **fields: Any) -> Any:
        """Begin a call."""
        asked, answered = (_CLASSES[name] for name in _METHODS[method])
        speak = self._channel.unary_unary(
            f"/scistream.Control/{method}",
            request_serializer=asked.SerializeToString,
            response_deserializer=answered.FromString,
        )
        return speak.future(asked(**fields), metadata=self._metadata)


@contextmanager
def old_client(address: str, ca: bytes, authorization: str | None = "INVALID_TOKEN") -> Iterator[OldClient]:
    """Connect as a process of its own would."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca), options) as channel:
        yield OldClient(channel, authorization)


@dataclass
class OldSession:
    """What an old client has after `update`: the consumer's side to connect to, and the producer's on the WAN."""

    uid: str
    producer: OldClient
    consumer: OldClient
    wan: list[str]
    lan: list[str]

    def release(self) -> None:
        """Release both sides."""
        for client in (self.producer, self.consumer):
            client.call("release", uid=self.uid)


def requested(
    client: OldClient, uid: str, role: str, prod_listeners: Sequence[str], num_conn: int = 1, hello_role: str = "PROD"
) -> tuple[Any, Any]:
    """Say req, and half a second later Hello beside it; both answers.

    On a busy machine req may need longer than old clients give it, which is no fault of the gateway's.
    """
    hello = {"uid": uid, "role": hello_role, "prod_listeners": list(prod_listeners)}
    asked = client.start("req", uid=uid, role=role, num_conn=num_conn, rate=0)
    until = time.monotonic() + 30
    time.sleep(HELLO_AFTER_S)
    while True:
        try:
            greeted = client.call("hello", **hello)
            return asked.result(), greeted
        except grpc.RpcError as error:
            unknown = error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)
            if asked.done() or not unknown or time.monotonic() > until:
                asked.cancel()
                raise
            time.sleep(0.05)


def opened(
    producer: OldClient, consumer: OldClient, uid: str, prod_listeners: Sequence[str], num_conn: int = 1
) -> OldSession:
    """Drive a whole session as old clients do: both gateways at once, each from a thread of its own."""
    answers: dict[str, Any] = {}
    faults: list[BaseException] = []

    def ask(client: OldClient, role: str) -> None:
        try:
            answers[role], _ = requested(client, uid, role, prod_listeners, num_conn)
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=each) for each in ((producer, "PROD"), (consumer, "CONS"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if faults:
        raise faults[0]
    wan, announced = list(answers["PROD"].listeners), list(answers["PROD"].prod_listeners)
    producer.call("update", uid=uid, role="PROD", remote_listeners=announced)
    consumer.call("update", uid=uid, role="CONS", remote_listeners=wan)
    return OldSession(uid, producer, consumer, wan, list(answers["CONS"].listeners))
