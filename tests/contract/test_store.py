"""The contract of a store, and what SQLite adds to it: durability, migration, damage."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from s2cs.store import MIGRATIONS, SqliteStore, Store
from scistream.errors import AlreadyExists, FailedPrecondition, NotFound, ResourceExhausted
from scistream.machine import Proof, Request, Session, State, Waits
from scistream.vocabulary import Endpoint, Rate, Role, Uid

Opener = Callable[[], Store]


@pytest.fixture(params=["sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Open the same store, again and again. Another implementation is another parameter."""
    return {"sqlite": lambda: SqliteStore(tmp_path / "s2cs.db")}[request.param]


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
        owner="alice",
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
    store.add_user("bob", False, b"b" * 32)
    store.add_user("alice", True, b"a" * 32)
    with pytest.raises(AlreadyExists):
        store.add_user("bob", True, b"c" * 32)
    again = opened()
    assert [(u.name, u.admin) for u in again.users()] == [("alice", True), ("bob", False)]
    assert again.user_by_token(b"b" * 32) == again.users()[1]
    assert again.user_by_token(b"x" * 32) is None
    again.remove_user("bob")
    assert store.user_by_token(b"b" * 32) is None
    with pytest.raises(NotFound):
        store.remove_user("bob")
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
        for migration in MIGRATIONS[:version]:
            old.executescript(migration)
        old.execute(f"PRAGMA user_version={version}")
        old.execute("INSERT INTO users VALUES ('alice', 1, x'00', 5.0)")
        old.commit()
        old.close()
        store = SqliteStore(tmp_path / "s2cs.db")
        store.note("x", "y")
        assert [user.name for user in store.users()] == ["alice"]
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

    def test_no_room(self, tmp_path: Path) -> None:
        store = SqliteStore(tmp_path / "s2cs.db")
        (pages,) = store._db.execute("PRAGMA page_count").fetchone()
        store._db.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(ResourceExhausted, match="make room"):
            store.save(session(reason="x" * 100_000))
        store._db.execute("PRAGMA max_page_count=100000")
        store.save(session("after"))
        store.close()
