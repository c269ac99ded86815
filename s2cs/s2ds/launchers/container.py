"""What a container of a proxy is, as an engine is told: who it is, what it sees, and what it may not."""

from __future__ import annotations

import hashlib
import json
import resource
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2cs.s2ds import entry
from s2cs.s2ds.confinement import RUN
from s2cs.s2ds.launchers.base import Job
from s2cs.s2ds.launchers.process import ENVIRONMENT, files_limit

DIRECTORY, _SESSION, _TUNNEL, SURVEY = (
    f"org.scistream.{each}" for each in ("directory", "session", "tunnel", "survey")
)
"""Labels: the data server, by its directory, the session's uid and the tunnel; of a survey, its image."""

_ENTRY = Path(entry.__file__)
_PROCESSES_MAX = 32768  # of their user, in all containers
_NEVER_MORE = {  # whatever the settings say
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges", "label=disable"],  # SELinux would let it read no file of the tunnel
    "ReadonlyRootfs": True,
    "NetworkMode": "host",
    "IpcMode": "private",
    "RestartPolicy": {"Name": "no"},  # the gateway restarts it, on its sockets
    "LogConfig": {"Type": "json-file", "Config": {"max-size": "64k"}},  # of what it says before it has its log
}


def name_of(job: Job) -> str:
    """Name a container after its tunnel. Nobody can have taken the name: not even a server that was killed half-way."""
    return f"{named_for(job.directory.parent)}-{job.directory.name}-{job.handle.stem}-{secrets.token_hex(4)}"


def named_for(directory: Path) -> str:
    """How the names of a data server's containers begin, by its directory. Labels are copied more easily than names."""
    return f"scistream-{hashlib.sha256(str(directory).encode()).hexdigest()[:8]}"


def described(job: Job, image: str, meeting: str) -> dict[str, Any]:
    """Describe a container: this tunnel's directory and nothing else of the host's files, and no room for more.

    Args:
        job: the program.
        image: its identity.
        meeting: the name of the Unix socket where it gets its descriptors.
    """
    environment = {**ENVIRONMENT, **job.environment, "LISTEN_FDS": str(len(job.sockets))}
    directory, limits, files = str(job.directory), job.limits, files_limit()
    own = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    most = _PROCESSES_MAX if own == resource.RLIM_INFINITY else min(own, _PROCESSES_MAX)
    given = 1 + len(job.sockets) + job.logs
    command = ["python3", "-I", "-S", "-c", _ENTRY.read_text(), meeting, str(given), *job.argv]
    host = {
        **_NEVER_MORE,
        "Mounts": [
            {"Type": "bind", "Source": directory, "Target": directory, "ReadOnly": True},
            {"Type": "bind", "Source": f"{directory}/{RUN}", "Target": f"{directory}/{RUN}"},
        ],
        "Ulimits": [
            {"Name": "core", "Soft": 1, "Hard": 1},  # see `forbid_cores`
            {"Name": "nofile", "Soft": files, "Hard": files},
            {"Name": "nproc", "Soft": most, "Hard": most},  # Podman would raise it, which not every host allows
        ],
        "CpuShares": max(2, limits.cpu_weight * 1024 // 100),
    }
    if limits.memory_bytes:
        host |= {"Memory": limits.memory_bytes, "MemorySwap": limits.memory_bytes}  # so none of it is swap
    if limits.tasks:
        host["PidsLimit"] = limits.tasks
    return {
        "Image": image,
        "Entrypoint": command,
        "Cmd": [],
        "Env": [f"{name}={value}" for name, value in environment.items()],
        "User": f"{job.confinement.uid}:{job.confinement.gid}",
        "WorkingDir": directory,
        "Labels": {DIRECTORY: str(job.directory.parent), _SESSION: job.uid, _TUNNEL: job.directory.name},
        "Healthcheck": {"Test": ["NONE"]},  # the image's is for s2cs
        "HostConfig": host,
    }


def surveying(image: str, programs: Mapping[str, str]) -> dict[str, Any]:
    """Describe a container that says which proxies its image has, and ends."""
    command = ["python3", "-I", "-m", "s2cs.s2ds.survey", json.dumps(programs)]
    host = {**_NEVER_MORE, "NetworkMode": "none"}
    made = {"Image": image, "Entrypoint": command, "Cmd": [], "User": "65534:65534", "HostConfig": host}
    return {**made, "Labels": {SURVEY: image}}
