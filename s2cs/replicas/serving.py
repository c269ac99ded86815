"""Serve as one of several S2CS: what is done while another one leads, and when this one does."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from s2cs import notify
from s2cs.credentials import credentials_of, methods_of
from s2cs.replicas.replica import Replica
from s2cs.server import RELOADED, Told, first_of, running, until_told
from s2cs.settings import Settings
from s2cs.settings_file import fingerprint, load
from scistream.errors import ScistreamError, TryAgain

log = logging.getLogger(__name__)


async def serve_as_one_of_several(settings: Settings, file: Path | None, told: Told) -> bool:
    """Pass calls on to the S2CS that leads, and be the gateway when that is this one.

    Returns:
        True when this program is to be started anew.

    Raises:
        FailedPrecondition: the shared store can never be used with these settings, or something else here cannot.
        Unavailable: a port to listen on is taken.
    """
    replica = Replica(settings)
    where = ", ".join(map(str, settings.server.listen))
    async with replica.following(credentials_of(settings)):
        log.info("gateway %s serves on %s, for the S2CS that leads", settings.server.name, where)
        notify.tell("READY=1")
        telling = asyncio.create_task(notify.keep_telling(lambda: f"serves on {where}, for the one that leads"))
        try:
            async with _following_monitoring(settings, replica):
                while not replica.won:
                    changed = asyncio.create_task(replica.changed())
                    await first_of(changed, told.stop, told.reload)
                    if changed.done():
                        changed.result()
                    changed.cancel()
                    if told.stop.is_set():
                        return False
                    if told.reload.is_set() and _may_start_anew(file, replica):
                        return True
                    told.reload.clear()
        finally:
            telling.cancel()
        try:
            await _lead(replica, settings, file, told)
        except TryAgain as error:
            log.error("this S2CS does not lead after all: %s", error)
            return True
        return replica.deposed


async def _lead(replica: Replica, settings: Settings, file: Path | None, told: Told) -> None:
    """Be the gateway, until somebody else is or the service manager wants no more."""
    await replica.prepare()
    async with (
        running(settings, fingerprint(file), replica.store, replica) as gateway,
        replica.leading(gateway.control) as look,
    ):
        leading = asyncio.create_task(until_told(gateway, settings, file, told))
        try:
            while not (leading.done() or replica.deposed):
                changed = asyncio.create_task(replica.changed())
                await asyncio.wait([leading, changed], return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                await look()
            if leading.done():
                await leading
        finally:
            leading.cancel()


def _may_start_anew(file: Path | None, replica: Replica) -> bool:
    """Tell whether the settings as they are now can be used, and whoever asked for it."""
    fault = ""
    try:
        credentials_of(settings := load(file))
        methods_of(settings)
    except ScistreamError as error:
        fault = str(error)
        log.error("not reloaded, the old settings stay in force: %s", error)
    try:
        outcome = {"at": time.time(), "fault": fault, "restart": [], "forbidden": []}
        replica.store.note(RELOADED, json.dumps(outcome))
    except ScistreamError as error:
        log.error("how the reload went cannot be noted: %s", error)
    return not fault


@asynccontextmanager
async def _following_monitoring(settings: Settings, replica: Replica) -> AsyncIterator[None]:
    """Serve metrics and health of one that does not lead, where they are wanted."""
    if not settings.metrics.listen:
        yield
        return
    from s2cs.web.monitoring import FollowersMonitoring  # noqa: PLC0415 - a fifth of the time to start

    monitoring = FollowersMonitoring(settings, lambda: replica.fault)
    monitoring.bind()
    try:
        await monitoring.start()
        yield
        await monitoring.stop()
    finally:
        monitoring.close()
