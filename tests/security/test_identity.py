"""Attacks by callers: no token, a made-up or recorded one, and the right token for somebody else's session."""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
import string
import sys
import time
import uuid
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from s2cs.auth import Caller, KeyHolder, digest, new_token
from s2cs.live import Live
from s2cs.sessions import Sessions
from s2cs.store import SqliteStore
from scistream.errors import NotFound, Unauthenticated
from scistream.machine import Owner, Request, Waits, open_session
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Role, Uid
from scistream.wire import grpc
from scistream.x509 import SessionCA
from tests.support.gateways import Client
from tests.support.sessions import in_an_hour
from tests.support.siege import Siege, echoes

Code = grpc.StatusCode
Answer = tuple[Code, str, tuple[tuple[str, str], ...]]


def _refused(call: Callable[[], Any]) -> Answer:
    """Call, and give all that a caller learns from being refused: status, words, trailing metadata."""
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details(), tuple(error.value.trailing_metadata() or ())


def _but_traffic(info: pb.SessionInfo) -> pb.SessionInfo:
    """Leave out what its own stream changes."""
    info.ClearField("traffic")
    return info


def _methods(uid: str) -> dict[str, Any]:
    """Every method of the protocol that names a session, with a message that would do something to it."""
    ca = SessionCA.create(Uid("x"), in_an_hour())
    return {
        "hello": pb.Hello(uid=uid, role="PROD", prod_listeners=["127.0.0.7:9"]),
        "update": pb.UpdateTargets(
            uid=uid,
            role="PROD",
            remote_listeners=["127.0.0.7:9"],
            certificate=ca.certificate.der,
            trust_anchor=ca.certificate.der,
        ),
        "renew": pb.Renew(uid=uid, lease_s=60, trust_anchor=ca.certificate.der),
        "release": pb.Release(uid=uid),
        "list": pb.ListRequest(uid=uid),
        "watch": pb.WatchRequest(uid=uid),
        "logs": pb.LogsRequest(uid=uid),
        "verify": pb.VerifyRequest(uid=uid),
    }


def _call(client: Client, method: str, message: Any, token: str | None = None) -> Any:
    answer = getattr(client, method)(message, token=token)
    return list(answer) if method == "watch" else answer


def _at_rest(client: Client, uid: str) -> Any:
    """Show a session without what changes while its streams run."""
    (found,) = client.list(pb.ListRequest(uid=uid)).sessions
    found.ClearField("traffic")
    return found


def test_no_method_that_names_a_session_is_left_out() -> None:
    named = {m.name for m in pb.DESCRIPTOR.services_by_name["Control"].methods if "uid" in m.input_type.fields_by_name}
    assert named == {*_methods("u"), "req"}


def test_token_guessing(besieged: Siege) -> None:
    """Everything near a true token, what is kept of it, and what is often a token: all refused in the same words."""
    true, chance = besieged.alice[0], random.Random(1)
    alphabet = string.ascii_letters + string.digits + "-_"
    guesses = [
        *(true[:n] for n in range(1, len(true), 7)),
        *(true[:n] + chance.choice(alphabet) + true[n + 1 :] for n in range(4, len(true), 7)),
        *(true + more for more in ("x", "=", "%00", ",", ";")),
        *(true.swapcase(), true[::-1], true * 2, f"Bearer {true}", f"Basic {true}"),
        *(hashlib.sha256(true.encode()).hexdigest(), besieged.alcf.token, besieged.alice[1], besieged.session.uid),
        *("admin", "root", "alice", "null", "None", "true", "*", "%", "' OR 1=1 --", '{"alg":"none"}', "s2t_"),
        *(new_token() for _ in range(100)),
    ]
    guesses = [guess for guess in guesses if guess != true]
    uid = besieged.session.uid
    with besieged.aps.client("") as nobody:
        answers = {_refused(partial(_call, nobody, "describe", pb.DescribeRequest(), guess)) for guess in guesses}
        assert len(answers) == 1, answers
        assert answers.pop()[0] is Code.UNAUTHENTICATED
        tries = itertools.product(_methods(uid).items(), guesses[::20])
        for (method, message), guess in tries:
            assert _refused(partial(_call, nobody, method, message, guess))[0] is Code.UNAUTHENTICATED
    print(f"{len(guesses)} guesses, one answer")


def test_anothers_uid_on_every_method(besieged: Siege) -> None:
    """Mallory learns nothing of alice's session, not even that it is there, and changes nothing of it."""
    mine, nobodys = besieged.session.uid, str(uuid.uuid4())
    with besieged.aps.client(besieged.alice[0]) as alice, besieged.aps.client(besieged.mallory[0]) as mallory:
        before = _at_rest(alice, mine)
        for method, message in _methods(mine).items():
            there = _refused(partial(_call, mallory, method, message))
            other = _methods(nobodys)[method]
            not_there = _refused(partial(_call, mallory, method, other))
            assert there[0] is Code.NOT_FOUND, method
            assert (there[0], there[1].replace(mine, ""), there[2]) == (
                not_there[0],
                not_there[1].replace(nobodys, ""),
                not_there[2],
            )
        assert mine not in [session.uid for session in mallory.list(pb.ListRequest()).sessions]
        assert _at_rest(alice, mine) == before
        # A uid that is taken is free for mallory: what he gets is a session of his own.
        request = pb.Request(uid=nobodys, role="PROD", num_conn=1, immediate=True)
        hers, his = alice.req(request), mallory.req(request)
        assert not set(hers.listeners) & set(his.listeners)
        mallory.release(pb.Release(uid=nobodys))
        assert alice.release(pb.Release(uid=nobodys)).state == "RELEASED"
    assert echoes(besieged.session.connect())


def test_the_key_of_one_session_on_another(besieged: Siege) -> None:
    """An application's key says Hello and watches, in its own session; with it nothing else can be asked."""
    key, uid = "key-of-a-job", str(uuid.uuid4())
    with besieged.aps.client(besieged.mallory[0]) as mallory:
        request = pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True, hello_key_sha256=digest(key))
        mallory.req(request)
        with besieged.aps.client(key) as job:
            for method, message in _methods(uid).items():
                if method not in ("hello", "watch"):
                    assert _refused(partial(_call, job, method, message))[0] is Code.UNAUTHENTICATED
            for nobodys in (besieged.session.uid, str(uuid.uuid4())):
                for method, message in _methods(nobodys).items():
                    assert _refused(partial(_call, job, method, message))[0] is Code.UNAUTHENTICATED
            said = job.hello(pb.Hello(uid=uid, role="PROD", prod_listeners=[str(besieged.app.endpoint)]))
            assert said.state == "ANNOUNCED"
            mallory.release(pb.Release(uid=uid))
            # Recorded and sent again, it opens nothing of a session that is over.
            assert _refused(partial(_call, job, "hello", _methods(uid)["hello"]))[0] in (
                Code.FAILED_PRECONDITION,
                Code.UNAUTHENTICATED,
            )


def test_replay(besieged: Siege) -> None:
    """All messages of a whole session, sent again: by its user, by another, and when it is over."""
    uid, target = str(uuid.uuid4()), [str(besieged.app.endpoint)]
    ca = SessionCA.create(Uid(uid), in_an_hour())
    with besieged.aps.client(besieged.alice[0]) as alice, besieged.aps.client(besieged.mallory[0]) as mallory:
        req = pb.Request(uid=uid, role="PROD", num_conn=1, immediate=True)
        hello = pb.Hello(uid=uid, role="PROD", prod_listeners=target)
        first = alice.req(req)
        alice.hello(hello)
        leaf = ca.issue(first.csr, Role.PROD)
        update = pb.UpdateTargets(
            uid=uid,
            role="PROD",
            remote_listeners=target,
            certificate=leaf.certificate.der,
            trust_anchor=leaf.trust_anchor.der,
        )
        opened = alice.update(update)
        # By herself: the same again.
        assert alice.req(req).listeners == first.listeners
        assert alice.update(update) == opened
        # By mallory, who has recorded them: a session of his own, for whose key the certificate is not.
        his = mallory.req(req)
        assert his.listeners != first.listeners
        assert his.csr != first.csr
        mallory.hello(hello)
        assert _refused(lambda: mallory.update(update))[0] is Code.INVALID_ARGUMENT
        mallory.release(pb.Release(uid=uid))
        assert alice.list(pb.ListRequest(uid=uid)).sessions[0].state == "ACTIVE"
        # When it is over: a REQ is a new session with a new key, and the recorded update is not for it.
        alice.release(pb.Release(uid=uid))
        assert _refused(lambda: alice.update(update))[0] is Code.FAILED_PRECONDITION
        assert _refused(lambda: alice.hello(hello))[0] is Code.FAILED_PRECONDITION
        assert alice.req(req).csr != first.csr
        alice.hello(hello)
        assert _refused(lambda: alice.update(update))[0] is Code.INVALID_ARGUMENT
        alice.release(pb.Release(uid=uid))


# Does anything tell that a uid is taken, by the time or by the way that a call takes?


def test_enumeration_by_timing(besieged: Siege) -> None:
    """Medians of many calls, in random order, are told; what is asserted is that the answers are one and the same."""
    times: dict[str, list[float]] = {"another's": [], "nobody's": []}
    words = set()
    with besieged.aps.client(besieged.mallory[0]) as mallory:
        for _ in range(300):
            for kind in random.sample(list(times), 2):
                uid = besieged.session.uid if kind == "another's" else str(uuid.uuid4())
                start = time.perf_counter()
                code, said, metadata = _refused(partial(_call, mallory, "list", pb.ListRequest(uid=uid)))
                times[kind].append(time.perf_counter() - start)
                words.add((code, said.replace(uid, ""), metadata))
    assert len(words) == 1
    for kind, all_of_them in times.items():
        quarters = statistics.quantiles(all_of_them)
        print(
            f"{kind} uid: median {quarters[1] * 1e6:.0f} us, quartiles {quarters[0] * 1e6:.0f}-{quarters[2] * 1e6:.0f}"
        )


def _lines(call: Callable[[], object]) -> list[tuple[str, int]]:
    """The lines of this project that a call runs, in order."""
    ran: list[tuple[str, int]] = []

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "s2cs" not in frame.f_code.co_filename:
            return None
        if event == "line":
            ran.append((frame.f_code.co_qualname, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        call()
    except (NotFound, Unauthenticated):
        pass
    finally:
        sys.settrace(None)
    return ran


def test_enumeration_by_the_path_through_the_code(tmp_path: Any) -> None:
    """Another's uid and nobody's run the same lines, for a user and for who has only a key."""
    store = SqliteStore(tmp_path / "db")
    sessions = Sessions(store)
    for number in range(3):
        request = Request(Uid(f"taken-{number}"), Role.PROD, 1)
        owner = Owner("id-of-alice", "alice", frozenset())
        session = open_session(f"id{number}", owner, request, 0.0, 60, Waits(hello=60, update=60))
        sessions.keep(Live(session))
    for caller in (Caller("mallory", "id-of-mallory"), KeyHolder(digest("made up"))):
        taken = _lines(lambda caller=caller: sessions.find(caller, Uid("taken-1")))
        free = _lines(lambda caller=caller: sessions.find(caller, Uid("free-1")))
        assert taken
        assert set(taken) == set(free)
    store.close()
