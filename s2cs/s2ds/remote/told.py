"""What has been told of a node's tunnels, and what is news: nothing is told twice, and nothing is left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from s2cs.s2ds.contract import Change, TunnelEvent, TunnelState, TunnelStatus

_CHANGE = {
    TunnelState.RUNNING: Change.RUNNING,
    TunnelState.BACKOFF: Change.EXITED,
    TunnelState.FATAL: Change.FATAL,
}
_STATE = {change: state for state, change in _CHANGE.items()}


class Told:
    """Remember each tunnel's state and restarts, as they were told."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[TunnelState | None, int]] = {}

    def expect(self, ids: Iterable[str]) -> None:
        """Take note of tunnels that the node has, and of which nothing was told yet."""
        self._told.update((id, (None, 0)) for id in ids)

    def started(self, id: str) -> None:
        """Take note of a start that was asked for, which is no news."""
        if id in self._told and self._told[id][0] is None:
            self._told[id] = (TunnelState.RUNNING, 0)

    def forget(self, id: str) -> None:
        """Take note of a stop that was asked for."""
        self._told.pop(id, None)

    def note(self, event: TunnelEvent) -> None:
        """Take note of news that is told."""
        if event.id in self._told and event.change in _STATE:
            _, restarts = self._told[event.id]
            self._told[event.id] = (_STATE[event.change], restarts + (event.change is Change.EXITED))

    def lost(self, reason: str) -> list[TunnelEvent]:
        """Say what there is to tell when the node is lost."""
        return [TunnelEvent(id, Change.LOST, reason) for id in self._told]

    @property
    def ids(self) -> frozenset[str]:
        """The tunnels that the node has."""
        return frozenset(self._told)

    def compared(
        self, known: Set[str], found: Mapping[str, TunnelStatus], was_lost: bool, gone: str
    ) -> list[TunnelEvent]:
        """Say what there is to tell of the tunnels that a node in touch has, and take note of it.

        Args:
            known: those that there were when the node was asked: it may have told before it reserved the others.
            found: all that it told of.
            was_lost: the node was told to be lost, so that they were, too.
            gone: the reason of those that it does not have.
        """
        news: list[TunnelEvent] = []
        for id, (state, restarts) in list(self._told.items()):
            if id not in known:
                continue
            if (status := found.get(id)) is None:
                news.append(TunnelEvent(id, Change.FATAL, gone))
                self.note(news[-1])
                continue
            change = _CHANGE.get(status.state)
            if change is Change.RUNNING and restarts < status.restarts:
                news.append(TunnelEvent(id, Change.EXITED, status.reason))
            elif change is None:
                if was_lost and status.state is not TunnelState.STARTING:
                    news.append(TunnelEvent(id, Change.FOUND))
                continue
            elif state is status.state and not was_lost:
                continue
            news.append(TunnelEvent(id, change, "" if change is Change.RUNNING else status.reason))
            self._told[id] = (status.state, status.restarts)
        return news
