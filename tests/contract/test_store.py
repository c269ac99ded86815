"""The contract of a store, and what SQLite adds to it: durability, migration, damage."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from s2cs.settings import StoreSettings
from s2cs.store import MIGRATIONS, SqliteStore, Store
from s2cs.users import SCOPES, Rank, Token, User
from scistream.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TryAgain,
    Unavailable,
)
from scistream.machine import Change, Owner, Proof, Request, Session, State, Waits
from scistream.vocabulary import Endpoint, Rate, Role, Uid
from tests.support.authority import Authority
from tests.support.etcd import WHY_NOT, Cluster, EtcdNode, etcd, running
from tests.support.ports import port_block

# A session as the first version wrote it.
_BODY = {
    "request": {
        "uid": "u-1",
        "role": "PROD",
        "num_conn": 1,
        "rate": 0,
        "protocol": "tcp",
        "producer": "",
        "consumer": "",
        "lease_s": 60,
        "backend": "",
        "labels": {},
        "hello_key_sha256": "",
    },
    "created_at": 1.0,
    "expires_at": 61.0,
    "waits": [30.0, 600.0, 120.0, 30.0, 30.0],
    "state": "RELEASED",
    "deadline": None,
    "backend": "nginx",
    "listeners": [],
    "csr": "",
    "prod_listeners": [],
    "targets": [],
    "proof": ["", "", ""],
    "before_update": None,
    "outcome": None,
    "reason": "",
}

Opener = Callable[[], Store]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if WHY_NOT:
        pytest.skip(WHY_NOT)
    with etcd(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("etcd", marks=pytest.mark.engines)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Open the same store, again and again. Another implementation is another parameter."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "s2cs.db")
    settings = request.getfixturevalue("cluster").settings(prefix=f"scistream/{uuid.uuid4()}")
    from s2cs.replicas.store import EtcdStore

    return lambda: EtcdStore(settings)


def soon(condition: Callable[[], bool]) -> None:
    """See that something is so within a moment: others' changes have a way to go."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def store(opened: Opener) -> Iterator[Store]:
    store = opened()
    yield store
    store.close()


def session(id: str = "a", **changes: object) -> Session:
    request = Request(
        uid=Uid("Uid-1"),
        role=Role.PROD,
        num_conn=3,
        rate=Rate(10**9),
        producer="10.0.0.1:5000",
        consumer="there",
        lease_s=60,
        backend="nginx",
        labels=MappingProxyType({"run": "12", "unicode": "é"}),
        hello_key_sha256=bytes(range(32)),
    )
    whole = Session(
        id=id,
        owner=Owner("local:1", "alice", frozenset({"beamline"})),
        request=request,
        created_at=1000.25,
        expires_at=2000.5,
        waits=Waits(hello=7),
        state=State.CLOSING,
        deadline=1500.125,
        backend="nginx",
        listeners=(Endpoint("192.0.2.1", 30000), Endpoint("::1", 30001)),
        csr=b"\x00\xff",
        prod_listeners=(Endpoint("10.0.0.1", 5000),),
        targets=(Endpoint("10.0.0.1", 5000),),
        proof=Proof(b"\x01\xff", b"anchor"),
        before_update=((Endpoint("10.0.0.2", 5000),), Proof(b"a", b"b", b"c"), 1999.5),
        outcome=State.EXPIRED,
        reason='a "reason"\nof two lines',
        since=1400.5,
        changes=(Change(State.REQUESTED, 1000.25), Change(State.CLOSING, 1400.5, "its user's wish")),
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


def test_a_session_comes_back_as_it_was(opened: Opener, store: Store) -> None:
    for id, changes in (
        ("a", {}),
        ("b", {"state": State.FAILED, "deadline": float("inf"), "outcome": None, "before_update": None}),
        ("c", {"created_at": 1.0}),
    ):
        store.save(session(id, **changes))
    again = opened()
    assert again.sessions() == [
        session("c", created_at=1.0),
        session("a"),
        session("b", state=State.FAILED, deadline=float("inf"), outcome=None, before_update=None),
    ]
    again.close()


def test_saving_replaces_and_deleting_forgets(store: Store) -> None:
    store.save(session())
    store.save(session(reason="new"))
    assert [s.reason for s in store.sessions()] == ["new"]
    store.delete("a")
    store.delete("a")
    assert store.sessions() == []


def test_users(opened: Opener, store: Store) -> None:
    bob, alice = User.new("bob", groups=["b", "a"]), User.new("alice", Rank.ADMIN)
    tokens = Token.new(b"b" * 32), Token.new(b"a" * 32, ["read"], 2e9)
    store.users.add(bob, tokens[0])
    store.users.add(alice, tokens[1])
    for twin in (User.new("bob"), User.new("carol")):  # the name is taken, and then the token is
        with pytest.raises(AlreadyExists):
            store.users.add(twin, tokens[0])
    again = opened()
    assert again.users.all() == [alice, bob]
    assert again.users.by_token(b"b" * 32) == (bob, tokens[0])
    assert again.users.by_token(b"a" * 32) == (alice, tokens[1])
    assert again.users.by_token(b"x" * 32) is None
    assert (again.users.by_id(bob.id), again.users.by_id("")) == (bob, None)
    again.users.remove("bob")
    soon(lambda: store.users.by_token(b"b" * 32) is None and store.users.by_id(bob.id) is None)
    with pytest.raises(NotFound):
        store.users.remove("bob")
    store.users.add(User.new("bob"), tokens[0])
    found = store.users.by_token(b"b" * 32)
    assert found is not None
    assert found[0].id != bob.id
    again.close()


def test_outsiders(opened: Opener, store: Store) -> None:
    ada = store.users.meet(User("oidc:lab:1", "lab:ada", groups=frozenset(["lab:b7"])))
    assert (ada.outsider, ada.created_at > 0) == (True, True)
    store.users.change(replace(ada, disabled=True))
    married = store.users.meet(User("oidc:lab:1", "lab:countess", Rank.OPERATOR))
    assert (married.disabled, married.rank, married.created_at) == (True, Rank.OPERATOR, ada.created_at)
    with pytest.raises(NotFound):
        store.users.by_name("lab:ada")
    store.users.meet(User("oidc:lab:2", "lab:ada"))
    with pytest.raises(PermissionDenied, match="s2cs user remove lab:ada"):
        store.users.meet(User("oidc:lab:3", "lab:ada"))
    store.users.remove("lab:ada")
    assert store.users.meet(User("oidc:lab:3", "lab:ada")).id == "oidc:lab:3"
    with pytest.raises(NotFound):
        store.users.change(User("oidc:lab:9", "lab:nobody"))


def test_tokens(opened: Opener, store: Store) -> None:
    bob, first, second = User.new("bob"), Token.new(b"1" * 32), Token.new(b"2" * 32, ["read"], 5e9)
    store.users.add(bob, first)
    store.users.add_token(bob.id, second)
    store.users.end_token(first.id, 6e9)
    store.users.end_token(second.id, 6e9)
    store.users.note_uses({first.id: 100.0, bob.id: 100.0, "gone": 1.0})
    store.users.note_uses({first.id: 50.0})
    again = opened()
    assert again.users.tokens(bob.id) == [replace(first, expires_at=6e9, used_at=100.0), second]
    assert again.users.by_name("bob").used_at == 100.0
    again.users.end_token(first.id)
    soon(lambda: store.users.by_token(first.sha256) is None)
    again.users.remove("bob")
    soon(lambda: store.users.by_token(second.sha256) is None)
    again.close()


def test_facts(opened: Opener, store: Store) -> None:
    assert store.fact("draining") == ""
    store.note("draining", "yes")
    store.note("draining", "no")
    again = opened()
    assert again.fact("draining") == "no"
    again.close()


class TestSqlite:
    def test_a_commit_survives_kill_9(self, tmp_path: Path) -> None:
        program = (
            "import os, signal, sys\n"
            "from pathlib import Path\n"
            "from s2cs.store import SqliteStore\n"
            "store = SqliteStore(Path(sys.argv[1]))\n"
            "for i in range(50): store.note('count', str(i))\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "s2cs.db")], check=False)
        assert done.returncode == -signal.SIGKILL
        store = SqliteStore(tmp_path / "s2cs.db")
        assert store.fact("count") == "49"
        store.close()

    @pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
    def test_an_older_file_is_brought_forward(self, tmp_path: Path, version: int) -> None:
        old = sqlite3.connect(tmp_path / "s2cs.db")
        old.executescript(MIGRATIONS[0])
        old.execute("INSERT INTO users VALUES ('alice', 1, x'00', 5.0)")
        for owner in ("alice", "gone"):
            old.execute(
                "INSERT INTO sessions VALUES (?, ?)", (owner, json.dumps(_BODY | {"id": owner, "owner": owner}))
            )
        old.commit()
        for migration in MIGRATIONS[1:version]:
            old.executescript(migration)
        old.execute(f"PRAGMA user_version={version}")
        old.commit()
        old.close()
        store = SqliteStore(tmp_path / "s2cs.db")
        store.note("x", "y")
        (alice,) = store.users.all()
        assert (alice.name, alice.rank, alice.created_at) == ("alice", Rank.ADMIN, 5.0)
        user, token = store.users.by_token(b"\0") or pytest.fail("the token is gone")
        assert (user, token.scopes, token.expires_at) == (alice, frozenset(SCOPES), inf)
        owners = {session.id: session.owner for session in store.sessions()}
        assert owners == {"alice": Owner(alice.id, "alice"), "gone": Owner("", "gone")}
        store.close()

    @pytest.mark.parametrize("damage", ["junk", "truncated", "newer", "directory"])
    def test_a_bad_file_is_refused_and_kept(self, tmp_path: Path, damage: str) -> None:
        file = tmp_path / "s2cs.db"
        if damage == "directory":
            file.mkdir()
        elif damage == "junk":
            file.write_bytes(os.urandom(9000))
        else:
            store = SqliteStore(file)
            for i in range(200):
                store.save(session(str(i)))
            store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            if damage == "newer":
                store._db.execute("PRAGMA user_version=999")
            store.close()
            if damage == "truncated":
                os.truncate(file, file.stat().st_size * 2 // 3)
        before = None if damage == "directory" else file.read_bytes()
        with pytest.raises(FailedPrecondition) as caught:
            SqliteStore(file)
        assert str(file) in str(caught.value)
        assert ("newer s2cs" if damage == "newer" else "move the file away") in str(caught.value)
        assert before is None or file.read_bytes() == before

    def test_two_that_bring_a_file_forward_at_once(self, tmp_path: Path) -> None:
        file = tmp_path / "s2cs.db"
        first = sqlite3.connect(file, isolation_level=None)
        first.execute("PRAGMA journal_mode=WAL")
        first.executescript(f"{MIGRATIONS[0]} {MIGRATIONS[1]} PRAGMA user_version=2; BEGIN IMMEDIATE;")
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(lambda: SqliteStore(file).close())
            time.sleep(0.5)  # for it to read the version before
            for statement in f"{''.join(MIGRATIONS[2:])} PRAGMA user_version={len(MIGRATIONS)}; COMMIT".split(";"):
                first.execute(statement)
            second.result()
        first.close()

    def test_no_room(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path / "s2cs.db")
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ResourceExhausted, match="make room"):
            store.save(session(reason="x" * 100_000))
        with pytest.raises(ResourceExhausted, match="make room"):
            store.users.add(User.new("alice", groups=[f"group{n}" for n in range(10_000)]), Token.new(b"1"))
        store._db.execute("PRAGMA max_page_count=100000")
        store.save(session("after"))
        store.users.add(User.new("alice"), Token.new(b"1"))
        store.close()


def test_an_order_to_end_a_session_is_seen_by_another_and_forgotten_when_done(opened: Opener) -> None:
    gateway, command = opened(), opened()
    before = gateway.version()
    gateway.note("mine", "x")
    assert gateway.version() == before  # what oneself changes is no news
    command.revoke("a", "killed by carol")
    soon(lambda: gateway.version() != before)
    assert gateway.revocations() == {"a": "killed by carol"}
    gateway.revoked("a")
    gateway.revoked("never-there")
    soon(lambda: command.revocations() == {})
    gateway.close()
    command.close()


@pytest.mark.engines
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
class TestEtcd:
    def test_tls_both_ways(self, tmp_path: Path) -> None:
        """Etcd lets in who has a certificate of its CA, and is known by its own; each fault is one sentence."""
        from s2cs.replicas.store import EtcdStore

        good, strange = Authority("etcd"), Authority("strange")
        pairs = {"host": good.issue_host("127.0.0.1"), "user": good.issue("s2cs"), "stranger": strange.issue("s2cs")}
        for name, (certificate, key) in pairs.items():
            (tmp_path / f"{name}.crt").write_bytes(certificate)
            (tmp_path / f"{name}.key").write_bytes(key)
        (tmp_path / "ca.crt").write_bytes(good.pem)
        (tmp_path / "strange.crt").write_bytes(strange.pem)
        first = port_block(1)
        node = EtcdNode("e", Endpoint("127.0.0.1", first), Endpoint("127.0.0.1", first + 1), tmp_path, tls=tmp_path)

        def settings(ca: str, user: str) -> StoreSettings:
            files = {"ca": tmp_path / f"{ca}.crt"} if ca else {}
            files |= {"certificate": tmp_path / f"{user}.crt", "key": tmp_path / f"{user}.key"} if user else {}
            return cluster.settings(**files)

        with running([node]) as cluster:
            store = EtcdStore(settings("ca", "user"))
            store.note("x", "y")
            store.close()
            for ca, user, words in (
                ("strange", "user", "not from .store. ca"),
                ("ca", "stranger", "see .store. certificate"),
                ("ca", "", "see .store. certificate"),
                ("", "", "wants TLS"),
            ):
                with pytest.raises(Unavailable, match=words):
                    EtcdStore(settings(ca, user))
            (tmp_path / "user.key").unlink()
            with pytest.raises(FailedPrecondition, match=r"key .*No such file"):
                EtcdStore(settings("ca", "user"))
            (tmp_path / "user.key").write_bytes(pairs["host"][1])
            with pytest.raises(FailedPrecondition, match="do not fit"):
                EtcdStore(
                    cluster.settings(
                        ca=tmp_path / "ca.crt", certificate=tmp_path / "user.crt", key=tmp_path / "host.key"
                    )
                )

    def test_who_leads_no_longer_writes_nothing(self, cluster: Cluster) -> None:
        from s2cs.replicas.store import LEADER, Deposed, EtcdStore

        settings = cluster.settings(prefix=f"scistream/{uuid.uuid4()}")
        old, new = EtcdStore(settings), EtcdStore(settings)
        new.write({LEADER: b"{}"})
        entry = new.mirror.get(LEADER)
        assert entry is not None
        old.term = entry.created
        soon(lambda: old.mirror.get(LEADER) is not None)
        old.save(session("a"))
        new.write({LEADER: None})
        new.write({LEADER: b"{}"})
        for stale in (lambda: old.save(session("a", reason="stale")), lambda: old.delete("a")):
            with pytest.raises(Deposed):
                stale()
        with pytest.raises(Deposed, match="leads now"):
            old.note("x", "y")
        soon(lambda: [each.reason for each in new.sessions()] == [session().reason])
        old.close()
        new.close()

    def test_a_lead_that_is_won_unheard_is_known(self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
        """Etcd made the leader's key, and its answer is lost: whoever has the key leads, and nobody waits for ever."""
        from s2cs.replicas.etcd import Etcd
        from s2cs.replicas.leadership import Leadership
        from s2cs.replicas.store import LEADER, EtcdStore

        settings = cluster.settings(prefix=f"scistream/{uuid.uuid4()}")
        store, change = EtcdStore(settings), Etcd.change
        lost: list[int] = []

        def unheard(etcd: Etcd, compare: Iterable[dict[str, Any]], writes: Iterable[dict[str, Any]]) -> int:
            compare = list(compare)
            revision = change(etcd, compare, writes)
            if compare and not lost:
                lost.append(revision)
                raise TryAgain("the answer is lost")
            return revision

        monkeypatch.setattr(Etcd, "change", unheard)
        leadership = Leadership(settings, store, {}, lambda: None)
        leadership.start()
        soon(lambda: leadership.leads)
        assert leadership.term in lost
        leadership.stop()
        soon(lambda: store.mirror.get(LEADER) is None)
        store.close()

    def test_a_lead_that_an_operator_takes_away_is_lost_and_can_be_won_again(self, cluster: Cluster) -> None:
        """Also where there is nobody else who would lead: nothing could be written any more, by anybody."""
        from s2cs.replicas.leadership import Leadership
        from s2cs.replicas.store import LEADER, EtcdStore

        settings = cluster.settings(prefix=f"scistream/{uuid.uuid4()}")
        store, operator = EtcdStore(settings), EtcdStore(settings)
        for _ in range(2):
            leadership = Leadership(settings, store, {}, lambda: None)
            leadership.start()
            soon(lambda: store.mirror.get(LEADER) is not None and leadership.leads)  # noqa: B023
            operator.write({LEADER: None})
            soon(lambda: leadership.lost)  # noqa: B023
            leadership.stop()
        store.close()
        operator.close()

    def test_a_write_that_comes_to_pass_late_is_in_place_of_nothing_newer(
        self, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As at a node of etcd that paused: what it was asked for was done at another one meanwhile, and more since."""
        from s2cs.replicas.etcd import Etcd
        from s2cs.replicas.store import EtcdStore

        store = EtcdStore(cluster.settings(prefix=f"scistream/{uuid.uuid4()}"))
        late, change = Etcd(cluster.settings()), Etcd.change
        asked: list[tuple[list[dict[str, Any]], list[dict[str, Any]]]] = []

        def twice(etcd: Etcd, compare: Iterable[dict[str, Any]], writes: Iterable[dict[str, Any]]) -> int:
            """Do it at one node, unheard, and ask another one."""
            asked.append((list(compare), list(writes)))
            change(etcd, *asked[-1])
            return change(etcd, *asked[-1])

        monkeypatch.setattr(Etcd, "change", twice)
        for reason in ("first", "second"):
            store.save(session("a", reason=reason))
            store.note("x", reason)
        store.users.add(User.new("alice"), Token.new(b"1"))
        (alice,) = store.users.all()
        store.users.add_token(alice.id, Token.new(b"2"))
        (_, token) = store.users.by_token(b"2") or pytest.fail("the token is gone")
        monkeypatch.undo()
        assert [change(late, *each) for each in asked] == [0] * len(asked)
        assert store.users.by_token(b"2") is not None
        assert token.sha256 == b"2"
        other = EtcdStore(cluster.settings(prefix=store.mirror.prefix))
        assert [each.reason for each in other.sessions()] == ["second"]
        assert other.fact("x") == "second"
        for each in (store, other, late):
            each.close()

    def test_a_store_that_is_away_is_told_at_once_and_is_back_by_itself(self, tmp_path: Path) -> None:
        from s2cs.replicas.store import EtcdStore

        with etcd(tmp_path / "etcd") as cluster:
            store = EtcdStore(cluster.settings())
            store.save(session("a"))
            (node,) = cluster.nodes
            node.stop()
            for _ in range(20):  # only the first one asks
                with pytest.raises(TryAgain, match="running streams go on"):
                    store.save(session("b"))
            assert [each.id for each in store.sessions()] == ["a"]
            with pytest.raises(TryAgain, match="running streams go on"):
                store.fact("draining")
            cluster.start(node)
            cluster.wait()
            soon(lambda: not store.mirror.away)
            store.save(session("b"))
            assert {each.id for each in store.sessions()} == {"a", "b"}
            store.close()

    def test_what_was_read_is_not_undone_by_a_watch_that_lags(self, cluster: Cluster) -> None:
        """As on a host under load that begins to lead: what it read then is the latest."""
        from s2cs.replicas.store import EtcdStore

        settings = cluster.settings(prefix=f"scistream/{uuid.uuid4()}")
        behind, other = EtcdStore(settings), EtcdStore(settings)
        other.note("n", "0")
        soon(lambda: behind.fact("n") == "0")  # it watches
        take, goes, told = behind.mirror._take, threading.Event(), []

        def late(changes: list[Any]) -> None:
            goes.wait(30)
            for change in changes:
                take([change])
                told.append(behind.fact("n"))

        behind.mirror._take = late  # type: ignore[method-assign]
        for word in ("1", "2", "3"):
            other.note("n", word)
        behind.mirror.refresh()
        goes.set()
        other.note("n", "4")
        soon(lambda: behind.fact("n") == "4")
        assert told[:3] == ["3", "3", "3"]
        behind.close()
        other.close()

    def test_what_a_watch_missed_is_read_anew(self, cluster: Cluster) -> None:
        from s2cs.replicas.etcd import Compacted, Etcd
        from s2cs.replicas.store import EtcdStore

        settings = cluster.settings(prefix=f"scistream/{uuid.uuid4()}")
        store = EtcdStore(settings)
        for n in range(5):
            store.note("n", str(n))
        client = Etcd(settings)
        body = {"revision": client.load("x/")[1], "physical": True}
        client.ask(lambda node: node.post(node.get_url("/kv/compaction"), json=body))
        with pytest.raises(Compacted):
            list(client.watch(store.mirror.prefix, 1))
        store.mirror._revision = 1  # as after a long time away
        store.mirror._watching.hush()
        other = EtcdStore(settings)
        other.note("n", "new")
        soon(lambda: store.fact("n") == "new")
        for each in (client, store, other):
            each.close()
