"""Is the gateway well, and could it take a session now: one answer for every kind of probe."""

from __future__ import annotations

from s2cs.gateway import Gateway
from scistream.errors import ScistreamError


def unhealthy(gateway: Gateway) -> str:
    """Say what only a restart would mend, in a sentence; empty when all is well."""
    return "the sessions' deadlines are no longer looked at" if gateway.stalled else ""


def unready(gateway: Gateway) -> str:
    """Say why no new session could be opened now, in a sentence; empty when one could."""
    if fault := unhealthy(gateway):
        return fault
    try:
        if gateway.draining:
            return "new sessions are not taken now: the gateway is being drained"
    except ScistreamError as error:
        return str(error)
    if gateway.unsaved:
        return f"{gateway.unsaved} sessions cannot be saved now; look at the disk of the state directory"
    backends = gateway.data_server.backends()
    if not any(backend.available for backend in backends):
        return "no proxy can be used: " + "; ".join(backend.reason for backend in backends)
    return ""
