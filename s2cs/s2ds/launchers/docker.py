"""Run each proxy in a container of its own, by Docker or by Podman's service.

A container inherits no sockets, so its first program takes them over a Unix socket in the tunnel's directory, and
becomes the proxy (`s2cs.s2ds.entry`). Who connects there is known by the kernel, with the number that its process has
here. From then on it is a process like any other: signals, counters and the way back of its sockets need no engine, and
streams go on while the engine is away. The engine is asked for what only it knows: how a container ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from signal import Signals

from s2cs.s2ds import procfs
from s2cs.s2ds.backends.base import Backend, Found
from s2cs.s2ds.config import Containers
from s2cs.s2ds.confinement import Confinement
from s2cs.s2ds.engine import End, Engine, NoSuch, text_of
from s2cs.s2ds.launchers.base import Job, Launcher, Running, out_of_memory
from s2cs.s2ds.launchers.container import DIRECTORY, SURVEY, described, name_of, named_for, surveying
from s2cs.s2ds.launchers.process import Process, in_words
from s2cs.s2ds.logs import last_words
from s2cs.s2ds.survey import read
from scistream.errors import ScistreamError, Unavailable

_HANDOVER_S = 20.0  # from the container's start to its word
_AWAY_S = 10.0  # how long an engine may take to come back
_SURVEY_S = 60  # no survey takes as long
_LOOK_S = 0.5  # between looks for either, meanwhile
_AT_ONCE = 250  # descriptors in one message; the kernel takes 253
_NEW = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_SIGNALLED = 128  # an engine gives the end by signal n as status 128 + n


class Contained(Process):
    """The first process of a container. With it all others there end."""

    name = ""  # of the container
    keeper: DockerLauncher
    memory_bytes = 0  # what it may use
    _burial: asyncio.Task[None] | None = None

    def let_go(self) -> None:
        """Stop watching it, and let it run."""
        if self._burial is not None:
            self._burial.cancel()
        super().let_go()

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        ended = await self.keeper.bury(self)
        self._forget()
        self._exit.set_result(ended)

    def _kill_group(self) -> None:
        self.signal(Signals.SIGKILL)

    def _group_there(self) -> bool:
        return False


class DockerLauncher:
    """Run programs in containers of an image that has the proxies and Python."""

    def __init__(self, containers: Containers | None = None) -> None:
        self._settings = containers or Containers()
        self._engine = Engine(self._settings.engine)
        self._image = ""  # which one the settings name, once that is known
        self._surveys: dict[str, dict[str, Found]] = {}  # by the image and the operator's programs
        self._names: set[str] = set()  # of containers that are in use, or will be

    def using(self, containers: Containers) -> Launcher:
        """Give a launcher for one data server."""
        return DockerLauncher(containers)

    def lacks(self) -> str:
        """Say what keeps containers from being made here; empty when nothing does."""
        try:
            self._identity()
        except ScistreamError as error:
            return str(error)
        return ""

    def find(self, backend: Backend, explicit: Path | None, confinement: Confinement | None) -> Found:
        """Find a proxy's program in the image."""
        programs = {backend.name: str(explicit)} if explicit else {}
        try:
            image = self._pinned()
            key = image + json.dumps(programs)
            if key not in self._surveys:
                self._surveys[key] = self._survey(image, programs)
            return self._surveys[key][backend.name]
        except (ScistreamError, ValueError, KeyError) as error:
            return Found(explicit or Path(backend.name), reason=str(error))

    async def launch(self, job: Job) -> Running:
        """Start a program in a container; it runs when this returns, and nothing is left when it is cancelled.

        Raises:
            Unavailable: the engine or the image is not there, or the container does not come up.
        """
        task = asyncio.ensure_future(self._launch(job))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            with suppress(ScistreamError, asyncio.CancelledError):
                await (await task).stop(Signals.SIGKILL, 0)
            raise

    def adopt(self, handle: Path) -> Running | None:
        """Find what a handle file names; None when it has ended."""
        try:
            name, boot, pid, started, memory = json.loads(handle.read_text())
            process = Contained.adopt(str(boot), int(pid), int(started))
        except (OSError, ValueError, TypeError):
            return None  # it had no sockets yet: `tidy` removes it
        return None if process is None else self._keep(process, str(name), int(memory))

    def passing_on(self, uid: str, program: str, running: Running | None) -> Callable[[list[str]], None] | None:
        """Give none: what they print is read from their files alone."""
        return None

    async def tidy(self, directory: Path) -> None:
        """Remove the containers of this data server that no proxy of it runs in."""
        with suppress(ScistreamError):  # while the engine is away nothing can be done
            for name in await self._engine.named({DIRECTORY: str(directory)}):
                if name not in self._names and name.startswith(f"{named_for(directory)}-"):
                    await self._engine.remove(name)

    async def bury(self, process: Contained) -> str:
        """Say how a container ended whose process has ended, and remove it; what the engine keeps goes later."""
        ended = "ended; the container engine does not say how"
        with suppress(ScistreamError):
            end = await self._engine.end_of(process.name)
            ended = _in_words(end, process.memory_bytes)
        with suppress(ScistreamError):
            await self._engine.remove(process.name)
        self._names.discard(process.name)
        return ended

    def _keep(self, process: Contained, name: str, memory_bytes: int) -> Contained:
        process.name, process.keeper, process.memory_bytes = name, self, memory_bytes
        self._names.add(name)
        return process

    def _pinned(self) -> str:
        """Find which image to use, until it is gone: all data servers are of the same one."""
        self._image = self._image or self._identity()
        return self._image

    def _identity(self) -> str:
        name = self._settings.image
        try:
            return self._engine.image(name)
        except NoSuch:
            raise NoSuch(
                f"image {name} is not there; build it: docker build -f deploy/docker/Dockerfile -t {name} ."
            ) from None

    def _survey(self, image: str, programs: Mapping[str, str]) -> dict[str, Found]:
        """Let the image say which proxies it has."""
        self._engine.prune(SURVEY, _SURVEY_S)  # of a server that was killed meanwhile
        made = self._engine.part(self._engine.ask("POST", "containers/create", surveying(image, programs)), "Id", str)
        try:
            self._engine.ask("POST", f"containers/{made}/start")
            code = self._engine.part(self._engine.ask("POST", f"containers/{made}/wait"), "StatusCode", int)
            said = text_of(self._engine.ask("GET", f"containers/{made}/logs", stdout="1", stderr="1"))
        finally:
            self._engine.ask("DELETE", f"containers/{made}", force="1", v="1")
        try:
            return read(said)
        except ValueError:
            raise Unavailable(
                f"image {self._settings.image} does not say which proxies it has (status {code}){last_words(said)}"
            ) from None

    async def _launch(self, job: Job) -> Contained:
        name = name_of(job)
        self._names.add(name)
        try:
            return await self._started(job, name)
        except BaseException as error:
            with suppress(ScistreamError):
                await self._engine.remove(name)
            self._names.discard(name)
            if isinstance(error, OSError):
                raise Unavailable(f"{job.argv[0]} could not be started in a container: {error.strerror}") from None
            raise

    async def _started(self, job: Job, name: str) -> Contained:
        meeting = job.directory / f"{name.rpartition('-')[2]}.sock"  # where no container of an earlier server knocks
        with _listening(meeting, job.confinement) as listener:
            try:
                try:
                    await self._answers()
                    image = await asyncio.to_thread(self._pinned)
                    await self._engine.call("POST", "containers/create", described(job, image, meeting.name), name=name)
                except NoSuch:
                    self._image = ""  # there may be another by the next time
                    raise
                await self._engine.call("POST", f"containers/{name}/start")
                return await self._handed_over(job, name, listener)
            finally:
                meeting.unlink(missing_ok=True)

    async def _answers(self) -> None:
        """Wait for an engine that is being restarted."""
        deadline = time.monotonic() + _AWAY_S
        while True:
            try:
                await self._engine.call("GET", "_ping")
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK_S)

    async def _handed_over(self, job: Job, name: str, listener: socket.socket) -> Contained:
        """Give a container that has started its log and its sockets, once it is written down which process it is."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_HANDOVER_S):
                accepting = loop.create_task(loop.sock_accept(listener))
                try:
                    while not (await asyncio.wait({accepting}, timeout=_LOOK_S))[0]:
                        if not (await self._engine.state(name)).get("Running"):
                            how = _in_words(await self._engine.end_of(name), job.limits.memory_bytes)
                            raise Unavailable(f"its container {how}{last_words(await self._engine.said(name))}")
                finally:
                    accepting.cancel()
                taker, _ = accepting.result()
        except TimeoutError:
            raise Unavailable(f"its container did not ask for its sockets within {_HANDOVER_S:g} s") from None
        with taker:
            pid, _, _ = struct.unpack("3i", taker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if pid == 0 or pid != (await self._engine.state(name)).get("Pid"):
                raise Unavailable(
                    "its container's process cannot be seen from here; run s2cs on the host, or with --pid=host"
                )
            process = self._keep(Contained(pid), name, job.limits.memory_bytes)
            try:
                _write(job, name, process)
                _hand_over(job, taker)
            except BaseException:
                process.let_go()
                raise
            return process


def _listening(path: Path, confinement: Confinement) -> socket.socket:
    """Wait at a Unix socket; by its directory's descriptor, since a path may be longer than an address can be."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        confinement.give(path)
        listener.listen(1)
    except BaseException:
        listener.close()
        raise
    finally:
        os.close(directory)
    return listener


def _write(job: Job, name: str, process: Contained) -> None:
    """Write the handle: before the container gets its sockets, so that none has them that nobody would find again."""
    handle = job.directory / job.handle
    text = json.dumps([name, procfs.boot_id(), process.pid, procfs.start_time(process.pid), process.memory_bytes])
    with open(os.open(handle, _NEW | os.O_TRUNC, 0o600), "w") as file:  # noqa: PTH123 - of a descriptor
        file.write(text)


def _hand_over(job: Job, taker: socket.socket) -> None:
    path = job.directory / job.log
    log = os.open(path, _NEW | os.O_APPEND, 0o600)
    try:
        job.confinement.give(path)  # nginx opens it again
        given = [log, *(each.fileno() for each in job.sockets), *[log] * job.logs]
        taker.setblocking(True)
        for first in range(0, len(given), _AT_ONCE):
            socket.send_fds(taker, [b"."], given[first : first + _AT_ONCE])
    finally:
        os.close(log)


def _in_words(end: End, memory_bytes: int) -> str:
    if end.out_of_memory:
        return out_of_memory(memory_bytes)
    return in_words(_SIGNALLED - end.code if end.code > _SIGNALLED else end.code)
