"""Configuration injection: whatever the fields of the messages hold, a proxy reads what was meant and nothing else.

The files are read back with parsers of the proxies' formats. What is expected is the file of a harmless session,
read the same way, with this session's uid, ports and targets in the place of its.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.base import Backend, Found
from s2cs.s2ds.contract import Capability
from scistream.errors import InvalidArgument
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.wire import grpc
from scistream.x509 import SessionCA
from tests.support.configs import PARSERS, Directives, plan, replaced
from tests.support.gateways import Client
from tests.support.sessions import in_an_hour
from tests.support.siege import APPLICATIONS, Siege, usable

EXAMPLES = int(os.environ.get("SCISTREAM_TEST_EXAMPLES", "30"))  # of each backend, with real proxies
_VALID = [
    "",
    "u",
    "PROD",
    "CONS",
    "tcp",
    "auto",
    "key",
    f"{APPLICATIONS}:9",
    "[::1]:9",
    "[::ffff:127.0.0.7]:9",
    "a.b:1",
]
_PAYLOADS = [
    *("\n", "\r\n", "\r", "\0", "\x0b", "\x0c", "\x1b[2J", "\x85", "\u2028", "\u2029", "\ufeff", "\u202e", " ", "\t"),
    *("'", '"', '"; ', "\\", "\\\n", "`id`", "$(id)", "${PATH}", '"${HOME}"', "$remote_addr", "%00", "%[env(PATH)]"),
    *("{{ 7 * 7 }}", "{% include '/etc/passwd' %}", "{# x #}", "{{ tunnel.directory }}", "}", "{", "};", "#", ";"),
    *("; load_module evil.so;", "} stream { server { listen 1; }", "\nexec = /bin/sh", "\n[evil]\naccept = 1\n"),
    *("\n    server evil 10.0.0.1:80", "\nglobal\n    external-check", " ssl verify none", ":9 ssl verify none"),
    *("\nverifyChain = no", ";ssl_verify_client off;", "A" * 300, "9" * 70_000, "é" * 100, "\u0661\u0662"),
]
_TEXTS = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(_VALID), st.sampled_from(_PAYLOADS), st.sampled_from(_VALID)),
    st.sampled_from(_VALID),
    st.text(max_size=80),
)


# On the templates alone: what comes through the door into the types, thousands of times


# What there is with a pre-shared key, and not with certificates.
_KEYED = {
    Role.PROD: [["PSKsecrets", "1/psk"]],
    Role.CONS: [["PSKsecrets", "1/psk"], ["PSKidentity", "scistream"], ["sni", ""]],
}
_HARMLESS = "harmless-uid"
_ADDRESSES = st.builds("{}:{}".format, st.ip_addresses(v=4), st.integers(1, 65535))


@pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
@pytest.mark.parametrize("role", Role)
@settings(max_examples=300, deadline=None)
@given(uid=st.one_of(_TEXTS, st.uuids().map(str)), listener=_ADDRESSES, target=st.one_of(_TEXTS, _ADDRESSES))
def test_a_template_prints_the_intended_directives(
    backend: Backend, role: Role, uid: str, listener: str, target: str
) -> None:
    try:
        values = Uid(uid), Endpoint.parse(listener), Endpoint.parse(target)
    except InvalidArgument:
        return
    if values[2].ip is None:
        return  # a name is resolved before it comes here
    found = Found(Path("/p"), "1", module=Path("/m.so"))
    harmless = Endpoint("192.0.2.1", 20001), Endpoint("192.0.2.2", 20002)
    parse = PARSERS[backend.name]
    expected = parse(backend.configuration(plan(Uid(_HARMLESS), role, [harmless]), found))
    written = parse(backend.configuration(plan(values[0], role, [(values[1], values[2])]), found))
    if Capability.PSK in backend.capabilities:
        keyed = parse(backend.configuration(plan(values[0], role, [(values[1], values[2])], psk=True), found))
        assert [words for words in keyed if words not in written] == _KEYED[role]
        another = plan(Uid(_HARMLESS), role, [(values[1], values[2])], psk=True)
        assert keyed == parse(backend.configuration(another, found))  # the uid is not in it: the key comes from it
    swap = {_HARMLESS: uid, str(harmless[0]): str(values[1]), str(harmless[1]): str(values[2])}
    swap |= {"20001": str(values[1].port), "192.0.2.2:20002": f"{values[2].ip}:{values[2].port}"}
    if backend.name != "stunnel":  # which writes IPv6 addresses without brackets
        swap["192.0.2.2:20002"] = str(values[2])
    assert written == replaced(expected, swap)


@pytest.mark.parametrize(
    ("backend", "payload"),
    [
        ("nginx", '192.0.2.2:20002"; } server { listen 1; proxy_pass "192.0.2.3:1'),
        ("nginx", '192.0.2.2:20002" ; # '),
        ("haproxy", "192.0.2.2:20002 ssl verify none"),
        ("haproxy", "192.0.2.2:20002\n    server evil 192.0.2.3:1"),
        ("stunnel", "192.0.2.2:20002\nverifyChain = no"),
        ("stunnel", "192.0.2.2:20002\n[evil]"),
    ],
)
def test_the_parsers_see_an_injection(backend: str, payload: str) -> None:
    """If one came through, the tests here would fail."""
    legs = [(Endpoint("192.0.2.1", 20001), Endpoint("192.0.2.2", 20002))]
    text = BACKENDS[backend].configuration(plan(Uid("u"), Role.CONS, legs), Found(Path("/p")))
    assert "192.0.2.2:20002" in text
    expected = replaced(PARSERS[backend](text), {"192.0.2.2:20002": payload})
    try:
        assert PARSERS[backend](text.replace("192.0.2.2:20002", payload)) != expected
    except AssertionError as error:
        assert "would not read" in str(error) or "[]" in str(error)  # nor does the proxy


# On running gateways: every field of every message, with real proxies that take the file


def _spoilable() -> Iterator[tuple[str, str]]:
    for method in pb.DESCRIPTOR.services_by_name["Control"].methods:
        for each in method.input_type.fields:
            if each.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
                yield method.name, each.name
            elif each.type == FieldDescriptor.TYPE_MESSAGE:
                yield from ((method.name, f"{each.name}.{part}") for part in ("key", "value"))


@dataclass
class Dialog:
    """One side of a session, with one field of one message hostile; where that is refused, the right one follows."""

    client: Client
    backend: str
    place: tuple[str, str]
    text: str
    uid: str = field(default_factory=lambda: str(uuid.uuid4()))
    role: Role = Role.PROD
    refused: bool = False

    def open(self) -> None:
        """Speak until the session is ACTIVE."""
        req = pb.Request(uid=self.uid, role=self.role, num_conn=1, immediate=True, backend=self.backend)
        sent, answer = self._say("req", req)
        self.uid, self.listener = sent.uid, Endpoint.parse(answer.listeners[0])
        self.role, self.used = Role(sent.role), answer.backend
        target = f"{APPLICATIONS}:9" if self.role is Role.PROD else "127.0.0.1:9"
        self._say("hello", pb.Hello(uid=self.uid, role=self.role, prod_listeners=[f"{APPLICATIONS}:9"]))
        ca = SessionCA.create(Uid(self.uid), in_an_hour())
        leaf = ca.issue(answer.csr, self.role)
        update = pb.UpdateTargets(uid=self.uid, role=self.role, remote_listeners=[target])
        update.certificate, update.trust_anchor = leaf.certificate.der, leaf.trust_anchor.der
        self._say("update", update)
        self._say("renew", pb.Renew(uid=self.uid, lease_s=600, trust_anchor=leaf.trust_anchor.der))
        self._say("list", pb.ListRequest(uid=self.uid))
        self.info = self.client.list(pb.ListRequest(uid=self.uid)).sessions[0]
        assert self.info.state == "ACTIVE"
        if self.place[0] == "watch":
            self._say("watch", pb.WatchRequest(uid=self.uid))

    def close(self) -> None:
        """Release the session."""
        if self.place[0] == "release":
            self._say("release", pb.Release(uid=self.uid))
        self.client.release(pb.Release(uid=self.uid))

    def _say(self, method: str, message: Any) -> tuple[Any, Any]:
        """Send the message, spoiled if it is its turn; what was taken, and the answer."""
        if method == self.place[0] and (hostile := self._spoiled(message)) is not None:
            try:
                answer = getattr(self.client, method)(hostile, timeout=20)
                return hostile, next(answer) if method == "watch" else answer
            except grpc.RpcError as error:
                assert error.code().name in _REFUSALS, (self.place, self.text, error)
                assert error.details().isprintable()
                self.refused = True
        answer = getattr(self.client, method)(message)
        return message, next(answer) if method == "watch" else answer

    def _spoiled(self, message: Message) -> Message | None:
        hostile = type(message)()
        hostile.CopyFrom(message)
        name, _, part = self.place[1].partition(".")
        kind = message.DESCRIPTOR.fields_by_name[name]
        if part:
            getattr(hostile, name)[self.text if part == "key" else "key"] = self.text if part == "value" else "value"
        elif isinstance(getattr(message, name), (str, bytes)):
            setattr(hostile, name, self.text if kind.type == kind.TYPE_STRING else self.text.encode())
        else:
            del getattr(hostile, name)[:]
            getattr(hostile, name).append(self.text)
        return hostile if self.uid or hostile != message else None


_REFUSALS = {
    *("INVALID_ARGUMENT", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED"),
    *("PERMISSION_DENIED", "DEADLINE_EXCEEDED"),
}


def _file(besieged: Siege, dialog: Dialog) -> tuple[Directives, dict[str, str]]:
    """Read the file that the session's proxy has been given; and all values in it that are the session's own."""
    name = BACKENDS[dialog.used].config
    ((path, text),) = (
        (path, text)
        for path in besieged.aps.tunnels.glob(f"*/{name}")
        if dialog.uid in (text := path.read_text()) and str(dialog.listener.port) in text
    )
    assert all(ord(character) < 128 for character in text)
    target = Endpoint.parse(dialog.info.targets[0])
    tunnel = path.relative_to(besieged.aps.tunnels).parts[0]
    values = {"uid": dialog.uid, "listener": str(dialog.listener.port), "target": str(target), "tunnel": tunnel}
    if digest := re.search(r"(?<=-)[0-9a-f]{24}(?=\.)", text):
        values["digest"] = digest[0]
    return PARSERS[dialog.used](text), values


@pytest.mark.parametrize("backend", usable())
def test_every_field_of_every_message(besieged: Siege, backend: str) -> None:
    expected: dict[Role, tuple[Directives, dict[str, str]]] = {}
    counts = {"refused": 0, "taken": 0}
    with besieged.aps.client(besieged.mallory[0]) as mallory:
        for role in Role:
            harmless = Dialog(mallory, backend, ("", ""), "", role=role)
            harmless.open()
            expected[role] = _file(besieged, harmless)
            harmless.close()

        @settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(st.sampled_from(list(_spoilable())), _TEXTS, st.sampled_from(Role))
        def attack(place: tuple[str, str], text: str, role: Role) -> None:
            dialog = Dialog(mallory, backend, place, text, role=role)
            try:
                dialog.open()
                written, values = _file(besieged, dialog)
            finally:
                dialog.close()
            counts["refused" if dialog.refused else "taken"] += 1
            if dialog.used != backend:
                return  # it asked for another one
            directives, old = expected[dialog.role]
            assert written == replaced(directives, {old[name]: values[name] for name in old})

        attack()
    print(f"{backend}: {counts}")
