"""All that the shared store has of a facility, in memory: read at once, and kept the same by a watch."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from s2cs.replicas.etcd import Change, Compacted, Entry, Etcd
from s2cs.settings import StoreSettings
from scistream.errors import ScistreamError, TryAgain

log = logging.getLogger(__name__)

_AGAIN_S = 0.3  # between attempts to watch


class Mirror:
    """Keep what has a prefix. Reading asks nobody; a change waits for etcd."""

    def __init__(self, settings: StoreSettings) -> None:
        """Load everything, and begin to watch.

        Raises:
            TryAgain: etcd cannot be reached.
            FailedPrecondition: etcd refuses.
        """
        self.prefix = settings.prefix.rstrip("/") + "/"
        self.away = ""  # why etcd cannot be asked now
        self.foreign = 0  # how many changes others have made
        self.told: Callable[[], None] = lambda: None  # is called, by a thread, when somebody has changed something
        self._asking, self._watching = Etcd(settings), Etcd(settings)
        self._lock = threading.RLock()
        self._entries: dict[str, Entry] = {}
        self._revision = 0  # what is known is of this one, or later
        self._read = 0  # that was read as a whole last: the watch may still tell what was before
        self._own: dict[int, set[str]] = {}  # by revision, the keys of changes that the watch has not told yet
        self._ended = False
        try:
            self.refresh()
        except BaseException:
            self._asking.close()
            raise
        self._thread = threading.Thread(target=self._follow, name="etcd-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._ended = True
        self._watching.hush()
        self._thread.join(2)
        self._asking.close()
        self._watching.close()

    def get(self, key: str) -> Entry | None:
        """What there is of a name."""
        return self._entries.get(self.prefix + key)

    def at(self, key: str) -> tuple[Entry | None, int]:
        """What there is of a name, and the revision that this is known to be of, or later."""
        with self._lock:
            return self._entries.get(self.prefix + key), self._revision

    def under(self, folder: str) -> dict[str, Entry]:
        """What there is in a folder, by the rest of its name."""
        begin = f"{self.prefix}{folder}/"
        with self._lock:
            return {key[len(begin) :]: entry for key, entry in self._entries.items() if key.startswith(begin)}

    def refresh(self) -> None:
        """Read everything anew, as it is now.

        Raises:
            TryAgain: etcd cannot be reached.
        """
        with self._lock:
            entries, self._read = self._asking.load(self.prefix)
            self._revision, self.away = self._read, ""
            if entries != self._entries:
                self._entries = entries
                self.foreign += 1
            self._own.clear()

    def change(self, compare: Iterable[dict[str, Any]], writes: Iterable[dict[str, Any]], after: list[Change]) -> int:
        """Write, and know it at once; the revision, or 0 when what was compared is not so.

        Args:
            compare: what has to be so.
            writes: what etcd is asked for.
            after: the same, as it is here then; revisions are filled in.

        Raises:
            TryAgain: etcd cannot be reached. It may be done all the same.
        """
        with self._lock:  # the watch waits, and so knows whose change it is
            if self.away:
                raise TryAgain(self.away)
            try:
                revision = self._asking.change(compare, writes)
            except TryAgain as error:
                self.away = str(error)  # nobody else waits for it before the watch is back
                self._watching.hush()
                raise
            if revision:
                self._own[revision] = {change.key for change in after}
                for change in after:
                    known = self._entries.get(change.key)
                    if change.entry is None:
                        self._entries.pop(change.key, None)
                    else:
                        created = known.created if known else revision
                        self._entries[change.key] = Entry(change.entry.value, created, revision)
            return revision

    def _follow(self) -> None:
        """Watch for ever, over each loss of it."""
        while not self._ended:
            begin = time.monotonic()
            try:
                try:
                    for changes in self._watching.watch(self.prefix, self._revision + 1):
                        self._take(changes)
                        if self._ended:
                            return
                except Compacted:
                    self._reload()
                threading.Event().wait(max(0.0, begin + _AGAIN_S - time.monotonic()))  # if it has ended at once
            except ScistreamError as error:
                if not self.away:
                    log.error("%s", error)
                self.away = str(error)
                threading.Event().wait(_AGAIN_S)
            except Exception:
                log.exception("changes of the shared store could not be taken")
                threading.Event().wait(_AGAIN_S)

    def _reload(self) -> None:
        with self._lock:  # so that nothing is changed here meanwhile
            self._entries, self._read = self._watching.load(self.prefix)
            self._revision = self._read
            self._own.clear()
            self.foreign += 1
        self.told()

    def _take(self, changes: list[Change]) -> None:
        with self._lock:
            if self.away and not self._ended:
                log.info("the shared store can be used again")
                self.away = ""
            for change in changes:
                if change.revision <= self._read:
                    continue
                mine = self._own.get(change.revision, ())
                self._revision = max(self._revision, change.revision)
                if change.key in mine:
                    continue
                if any(change.key in keys for revision, keys in self._own.items() if revision > change.revision):
                    continue  # it was changed here since
                self.foreign += 1
                if change.entry is None:
                    self._entries.pop(change.key, None)
                else:
                    self._entries[change.key] = change.entry
            for revision in [revision for revision in self._own if revision <= self._revision]:
                del self._own[revision]
        if changes:
            self.told()
