"""What a gateway answers: no text in it steers a terminal, and what is no state, role, address or time is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from s2uc.answers import sound
from scistream.errors import Unavailable
from scistream.proto import scistream_pb2 as pb

_EVIL = "a\x1b[2J\nb"
_CLEANED = "a\\x1b[2J\\nb"
_STRICT = {  # what has to be one of some words, or an address
    "Response": {"state": "ACTIVE", "listeners": "127.0.0.1:1"},
    "AppResponse": {"state": "ACTIVE", "listeners": "127.0.0.1:1"},
    "SessionInfo": {"state": "ACTIVE", "role": "PROD", "prod_listeners": "127.0.0.1:1"},
    "SessionLog": {"role": "PROD"},
    "SessionChange": {"state": "ACTIVE"},
    "Verification": {"role": "PROD"},
}
_ANSWERS = {method.output_type for method in pb.DESCRIPTOR.services_by_name["Control"].methods}


def _fill(message: Message) -> None:
    """Put something evil wherever a text can be."""
    strict = _STRICT.get(message.DESCRIPTOR.name, {})
    for field in message.DESCRIPTOR.fields:
        inner = field.message_type
        if field.type == FieldDescriptor.TYPE_STRING:
            text = strict.get(field.name, _EVIL)
            if field.is_repeated:
                getattr(message, field.name).extend(["fine" if field.name not in strict else text, text])
            else:
                setattr(message, field.name, text)
        elif inner is None:
            continue
        elif inner.GetOptions().map_entry:
            getattr(message, field.name)[_EVIL] = _EVIL
        elif inner.full_name.startswith("google."):
            getattr(message, field.name).seconds = 1_800_000_000
        elif field.is_repeated:
            _fill(getattr(message, field.name).add())
        else:
            _fill(getattr(message, field.name))


def _texts(message: Message) -> Iterator[str]:
    for field, value in message.ListFields():
        for each in value if field.is_repeated else [value]:
            if isinstance(each, str):
                yield each
            elif isinstance(each, Message):
                yield from _texts(each)
        if field.message_type and field.message_type.GetOptions().map_entry:
            yield from value.values()


@pytest.mark.parametrize("kind", sorted(_ANSWERS, key=lambda kind: kind.name), ids=lambda kind: kind.name)
def test_no_text_of_any_answer_steers_a_terminal(kind) -> None:  # type: ignore[no-untyped-def]
    answer = GetMessageClass(kind)()
    _fill(answer)
    assert any(not text.isprintable() for text in _texts(answer))
    found = list(_texts(sound(answer, "north")))
    assert all(text.isprintable() for text in found)
    assert _CLEANED in found


def test_what_is_fine_is_left_as_it_is() -> None:
    info = pb.SessionInfo(uid="a", role="CONS", state="ACTIVE", reason="", listeners=["127.0.0.1:1"], owner="Zoë Ålund")
    info.created_at.FromSeconds(1_800_000_000)
    info.labels["scan"] = "7"
    before = info.SerializeToString(deterministic=True)
    assert sound(pb.SessionList(sessions=[info]), "north").sessions[0].SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"role": "BOTH"},
        {"state": "FLYING"},
        {"state": ""},
        {"created_at": (253_402_300_799, 0)},  # a time that has no local one everywhere
        {"created_at": (-62_135_596_800, 0)},
        {"expires_at": (2**62, 0)},
        {"expires_at": (0, 10**9)},
        {"expires_at": (0, -1)},
    ],
    ids=str,
)
def test_what_no_gateway_says_is_refused_in_one_sentence(wrong: dict[str, object]) -> None:
    facts = {"uid": "a", "role": "PROD", "state": "ACTIVE", **wrong}
    times = {name: facts.pop(name) for name in list(facts) if name.endswith("_at")}
    info = pb.SessionInfo(**facts)
    for name, (seconds, nanos) in times.items():
        getattr(info, name).seconds, getattr(info, name).nanos = seconds, nanos
    for answer in (
        pb.SessionList(sessions=[pb.SessionInfo(role="PROD", state="ACTIVE"), info]),
        pb.SessionEvent(session=info),
    ):
        with pytest.raises(Unavailable, match="gateway north: its answer cannot be used") as caught:
            sound(answer, "north")
        assert str(caught.value).isprintable()


def test_an_event_of_a_newer_kind_is_an_event() -> None:
    event = pb.SessionEvent(kind=77, session=pb.SessionInfo(role="PROD", state="ACTIVE"))  # type: ignore[arg-type]
    assert sound(event, "north").kind == pb.SessionEvent.UNSPECIFIED
