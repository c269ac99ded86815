"""The audit log of a running gateway: what is to be recorded is queued, and a thread writes it.

A record costs its caller a few microseconds. The thread writes whatever has come since it wrote last, in one
piece, and waits until the disk has it (fdatasync): under load the batches grow, and the event loop never waits.
What a kill -9 can take is what came since the last batch, some milliseconds' worth.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from s2cs.audit.files import Files, Keeping, Record
from s2cs.audit.flood import Flood
from s2cs.auth import Caller, KeyHolder
from scistream.errors import Unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from s2cs.s2ds.contract import Traffic
    from s2cs.settings import Settings
    from scistream.machine import Session

log = logging.getLogger(__name__)

_MOST_WAITING = 20_000  # records that wait for a disk; of more only the number is kept
_RETRY_S = 1.0
_MOST_KNOWN = 10_000  # callers whose first use is remembered
_Item = Record | threading.Event | None


def directory_of(settings: Settings) -> Path:
    """Say where the log is."""
    return settings.server.state_dir / (settings.audit.directory or "audit")


def files_of(settings: Settings) -> Files:
    """Open the log that the settings name; nothing is touched yet."""
    audit = settings.audit
    return Files(directory_of(settings), Keeping(audit.max_bytes, audit.keep_files, audit.keep_age))


class Audit:
    """Record who did what. Without files nothing is recorded."""

    def __init__(self, files: Files | None = None, strict: bool = True, refusals_per_minute: int = 10) -> None:
        """Record into files.

        Args:
            files: of the log.
            strict: no new sessions while it cannot be written.
            refusals_per_minute: of one address that are recorded each by itself; of the others, the number.
        """
        self._files = files
        self._strict = strict
        self._flood = Flood(refusals_per_minute)
        self._queue: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._known: dict[tuple[str, str, str], None] = {}
        self._fault = ""
        self._lost = 0
        self._last = ""
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: Settings) -> Audit:
        """Make the log that the settings ask for."""
        audit = settings.audit
        return cls(
            files_of(settings) if audit.enabled else None, audit.on_failure == "refuse", audit.refusals_per_minute
        )

    def start(self) -> None:
        """Begin to write."""
        if self._files is not None:
            self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
            self._thread.start()

    def close(self, last: str = "") -> None:
        """Write what waits, and the last event, and end."""
        if self._thread is not None:
            self._last = last
            self._queue.put(None)
            self._thread.join(10)
            self._thread = None

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until the disk has all that was recorded before; tell whether it has."""
        if self._thread is None:
            return True
        done = threading.Event()
        self._queue.put(done)
        return done.wait(timeout_s)

    def require(self) -> None:
        """Refuse what must not happen unrecorded.

        Raises:
            Unavailable: the log cannot be written, and the settings say that no session may begin then.
        """
        if self._strict and self._fault:
            raise Unavailable(
                "this gateway takes no new sessions: its audit log cannot be written; the operator finds why in its log"
            )

    def write(
        self,
        event: str,
        *,
        caller: Caller | KeyHolder | None = None,
        peer: str = "",
        session: Session | None = None,
        decision: str = "",
        reason: str = "",
        **facts: object,
    ) -> None:
        """Record something. Never waits, never fails.

        Args:
            event: its name, as docs/operator/audit.md lists them.
            caller: on whose word.
            peer: the address that asked.
            session: what it is about.
            decision: `allowed` or `refused`.
            reason: of the decision, or the cause of what happened.
            facts: whatever else; what is empty is left out.
        """
        if self._files is None:
            return
        if decision == "refused" and not self._flood.admits(event, _host(peer), who(caller).get("user", "")):
            return
        about = {} if session is None else _about(session)
        all_facts = {"decision": decision, "reason": reason, **who(caller), "peer": peer, **about, **facts}
        self._put(Record(time.time(), event, all_facts))

    def login(self, caller: Caller, peer: str) -> None:
        """Record the first use of a user's credentials from an address, in the life of this process."""
        if self._files is None:
            return
        key = (caller.id, caller.method, _host(peer))
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.pop(next(iter(self._known)))
            self._known[key] = None
            self.write("login", caller=caller, peer=peer, decision="allowed", scopes=sorted(caller.scopes))

    def _put(self, record: Record) -> None:
        if self._queue.qsize() < _MOST_WAITING:
            self._queue.put(record)
        else:
            self._lost += 1

    # The thread

    def _run(self) -> None:
        waiting: list[Record] = []
        while True:
            items = self._taken(_RETRY_S if waiting or self._flood.counting else None)
            waiting += [item for item in items if isinstance(item, Record)]
            waiting += [Record(time.time(), "refusals", facts) for facts in self._flood.due(ending=None in items)]
            if None in items and self._last:
                waiting.append(Record(time.time(), self._last, {}))
            self._lost += max(0, len(waiting) - _MOST_WAITING)
            del waiting[_MOST_WAITING:]
            if waiting and self._written(waiting):
                waiting = []
            for item in items:
                if isinstance(item, threading.Event) and not waiting:
                    item.set()
            if None in items:
                return

    def _taken(self, timeout_s: float | None) -> list[_Item]:
        """Take what there is; wait for something if there is nothing."""
        items: list[_Item] = []
        with suppress(queue.Empty):
            items.append(self._queue.get(timeout=timeout_s))
            while len(items) < _MOST_WAITING:
                items.append(self._queue.get_nowait())
        return items

    def _written(self, records: list[Record]) -> bool:
        assert self._files is not None
        lost = self._lost
        missing = self._fault or lost
        resumed = [Record(time.time(), "log.resumed", {"reason": self._fault, "lost": lost})] if missing else []
        try:
            self._files.append([*records, *resumed])
        except Exception as error:  # whatever it is, the thread goes on and tries again
            if not self._fault:
                log.error("the audit log in %s cannot be written: %s", self._files.directory, error)
            self._fault = str(error) or type(error).__name__
            return False
        if missing:
            log.warning("the audit log is written again; %d records were lost", lost)
            self._fault, self._lost = "", self._lost - lost
        return True


def who(caller: Caller | KeyHolder | None) -> Mapping[str, str]:
    """Name a caller, without anything that it proves itself with."""
    if isinstance(caller, Caller):
        return {"user": caller.name, "user_id": caller.id, "rank": caller.role.name.lower(), "auth": caller.method}
    return {} if caller is None else {"auth": "session key"}


def _about(session: Session) -> Mapping[str, str]:
    owner = session.owner
    return {
        "uid": session.uid,
        "session": session.id,
        "role": session.role,
        "owner": owner.name,
        "owner_id": owner.id,
    }


def moved(traffic: Traffic | None) -> Mapping[str, Any]:
    """Say what a session moved, as far as that is known."""
    if traffic is None:
        return {}
    return {
        "bytes_from_producer": traffic.from_producer,
        "bytes_from_consumer": traffic.from_consumer,
        "connections": traffic.total,
    }


def _host(peer: str) -> str:
    return peer.rpartition(":")[0]
