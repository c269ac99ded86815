"""Which S2CS of a facility leads: who made the key `leader`, under a lease that it keeps alive.

A term is the revision of etcd that made the key, so a later one is always greater. Whoever leads stops to believe so a
little before etcd does, by its own clock: without etcd, or without having run for a while, it does not lead.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from s2cs.replicas.etcd import Etcd, made_at, now, put
from s2cs.replicas.store import LEADER, EtcdStore
from s2cs.settings import StoreSettings
from scistream.errors import ScistreamError

log = logging.getLogger(__name__)

REPLICAS = "replicas"  # the folder of all S2CS that run
_MARGIN_S = 0.5  # between one's own end of a lease and etcd's


class Leadership:
    """Stand for the lead from `start` on, and keep it until `stop` or until it is lost.

    Args:
        settings: where etcd is.
        store: what is shared.
        about: what the others are to know of this one: where it is, and its certificates.
        told: is called, by a thread, when something may be different.
    """

    def __init__(
        self, settings: StoreSettings, store: EtcdStore, about: dict[str, str], told: Callable[[], None]
    ) -> None:
        self.term = 0  # of this one, as soon as it leads; for good, for it never leads twice
        self.lost = False
        self._ttl_s = settings.ttl
        self._store = store
        self._about = about
        self._told = told
        self._etcd = Etcd(settings)
        self._name = str(settings.listen)
        self._lease = 0
        self._good_until = 0.0
        self._ending = threading.Event()
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._stand, name="etcd-lease", daemon=True)

    @property
    def leads(self) -> bool:
        """True while no other S2CS can lead."""
        return self.term > 0 and not self.lost and now() < self._good_until

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: the store has changed."""
        self._woken.set()

    def stop(self) -> None:
        """End, and let another one lead at once."""
        self._ending.set()
        self._woken.set()
        self._thread.join(5)
        with suppress(ScistreamError):
            if self._lease:
                self._etcd.revoke(self._lease)
        self._etcd.close()

    def serve(self) -> None:
        """Tell the others that calls are served here now.

        Raises:
            Deposed, TryAgain: another one leads, or etcd cannot be reached.
        """
        self._store.write({LEADER: self._words(serving="yes")}, lease=self._lease)

    def _words(self, **more: str) -> bytes:
        return json.dumps(self._about | more).encode()

    def _stand(self) -> None:
        pause = self._ttl_s / 4
        while not self._ending.is_set():
            self._woken.clear()
            before = self.term
            try:
                self._keep()
                if self._lease and not self.term:
                    self._win()
            except ScistreamError as error:
                log.debug("%s", error)
            except Exception:
                log.exception("the lead could not be looked after")
            if self.term and not self.lost and not self._holds():
                self.lost = True
                log.error("this S2CS leads no longer: its lease at the shared store has ended; streams go on")
            if self.term != before or self.lost:
                self._told()
            if self.lost:
                return
            self._woken.wait(min(pause, max(0.1, self._good_until - now())) if self.term else pause)

    def _holds(self) -> bool:
        """Tell whether the lead is still this one's, as far as is known."""
        leader, known_to = self._store.mirror.at(LEADER)
        # Without a leader the mirror may not have heard yet that this one won; if it has, an operator took it away.
        taken = known_to >= self.term if leader is None else leader.created > self.term
        return now() < self._good_until and not taken

    def _keep(self) -> None:
        """Keep the lease, or get one."""
        asked = now()
        if self._lease:
            ttl_s = self._etcd.refresh(self._lease)
            if ttl_s > 0:
                self._good_until = asked + ttl_s - _MARGIN_S
                return
            self._lease = 0
        if self.term:
            self._good_until = 0.0
            return
        self._lease = self._etcd.grant(self._ttl_s)
        key = f"{self._store.mirror.prefix}{REPLICAS}/{self._name}"
        self._etcd.change([], [put(key, self._words(), self._lease)])
        self._good_until = asked + self._ttl_s - _MARGIN_S

    def _win(self) -> None:
        """Make the leader's key, if nobody has it."""
        key, words = self._store.mirror.prefix + LEADER, self._words(lease=f"{self._lease}")
        if (leader := self._store.mirror.get(LEADER)) is None:
            term = self._etcd.change([made_at(key, 0)], [put(key, words, self._lease)])
        else:  # it may be this one's, when etcd's answer was lost
            term = leader.created if leader.value == words else 0
        if term:
            log.info("this S2CS leads now, in term %d", term)
            self.term = term
