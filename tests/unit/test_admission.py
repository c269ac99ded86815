"""What a gateway refuses up front."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2cs import admission
from s2cs.held import Held
from s2cs.policy.decision import Use
from s2cs.settings import Limits
from scistream.errors import ResourceExhausted
from scistream.machine import Owner, Request, Waits, open_session
from scistream.vocabulary import Rate, Role, Uid


def request(num_conn: int = 1, rate: str = "0") -> Request:
    return Request(Uid("u"), Role.PROD, num_conn, Rate.parse(rate))


def running(*requests: Request) -> Use:
    held = Held()
    for i, each in enumerate(requests):
        held.change(None, open_session(str(i), Owner("local:1", "alice"), each, 0.0, 60.0, Waits()))
    return held.all


@pytest.mark.parametrize(
    ("limits", "there", "more", "says"),
    [
        ({"sessions": 1}, [request()], request(), "serves 1 sessions already"),
        ({"connections": 5}, [request(3)], request(3), "3 connections were asked for, and 2 of this gateway's 5"),
        (
            {"rate": "10Gb/s"},
            [request(rate="8Gb/s")],
            request(rate="3Gb/s"),
            "of this gateway's 10 Gb/s 2 Gb/s",
        ),
        ({"rate": "1Gb/s"}, [request(rate="1Gb/s")], request(rate="1kb/s"), "none is left"),
    ],
)
def test_it_is_full(limits: dict[str, object], there: list[Request], more: Request, says: str) -> None:
    with pytest.raises(ResourceExhausted, match=says):
        admission.admit(Limits.model_validate(limits), running(*there), more)


def test_there_is_room() -> None:
    limits = Limits.model_validate({"sessions": 2, "connections": 6, "rate": "10Gb/s"})
    admission.admit(limits, running(request(3, "8Gb/s")), request(3, "2Gb/s"))
    admission.admit(Limits(), running(request(rate="900Gb/s")), request(rate="900Gb/s"))


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("few_descriptors")
def test_descriptors() -> None:
    admission.admit(Limits(), Use(), request(4))
    with pytest.raises(ResourceExhausted, match="LimitNOFILE"):
        admission.admit(Limits(), Use(), request(64))


@pytest.mark.parametrize("version", ["1", "2"])
def test_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Counted against the service's own cgroup, of either version."""
    group = tmp_path / "s2cs.service"
    group.mkdir()
    (group / "pids.max").write_text("20\n")
    (group / "pids.current").write_text("17\n")
    cgroup = tmp_path / "cgroup"
    cgroup.write_text("4:memory:/x\n8:pids:/s2cs.service\n" if version == "1" else "0::/s2cs.service\n")
    monkeypatch.setattr(admission, "_CGROUP", cgroup)
    monkeypatch.setattr(admission, "_ROOTS", {"pids" if version == "1" else "": str(tmp_path)})
    with pytest.raises(ResourceExhausted, match="may start 3 more processes"):
        admission.admit(Limits(), Use(), request())
    (group / "pids.max").write_text("max\n")
    admission.admit(Limits(), Use(), request())
