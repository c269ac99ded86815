"""What a proxy that somebody took over could do: nearly nothing. A shell stands in for it, confined in the same way."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2cs.s2ds import landlock
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.backends.stunnel import _written
from s2cs.s2ds.confinement import RUN, Confinement, choose, own
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.s2ds.launchers.base import Job
from s2cs.s2ds.local import LocalDataServer
from scistream.errors import FailedPrecondition
from scistream.vocabulary import Endpoint, PortRange, Role
from tests.support.ports import ports
from tests.support.tunnels import FLAVOURS, Flavour, Session, config, flavour, local

NOBODY = Endpoint("127.0.0.1", 9)
needs_landlock = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")


@pytest.fixture
def range_() -> Iterator[PortRange]:
    with ports(20) as held:
        yield held


@pytest.fixture(params=["the proxies' user", "its own user"])
def confinement(request: pytest.FixtureRequest) -> Confinement:
    """As S2CS confines when it may change users, and when it may not."""
    if request.param == "its own user":
        if not landlock.abi():
            pytest.skip("this kernel has no Landlock")
        return own()
    if not (chosen := choose("")).switches:
        pytest.skip("this user cannot run programs as another one")
    return chosen


async def started(server: LocalDataServer, id: str) -> int:
    session = Session()
    reserved = await server.reserve(session.spec(Role.PROD, id=id))
    await server.start(id, session.bridge(reserved, Role.PROD, NOBODY))
    return (await server.list(id))[0].pids[0]


async def said(script: str, directory: Path, confinement: Confinement) -> str:
    """Run a shell where a proxy would be, and give what it said."""
    job = Job(("/bin/sh", "-c", script), directory, confinement, log=Path("try.log"), handle=Path("try.handle"))
    process = await LAUNCHERS["process"].launch(job)
    assert await process.wait(20)
    return (directory / "try.log").read_text()


@pytest.mark.parametrize("name", FLAVOURS)
async def test_a_proxy_has_no_privileges_and_leaves_no_core(name: str, tmp_path: Path, range_: PortRange) -> None:
    chosen = choose("")
    async with local(config(tmp_path, range_, flavour(name))) as server:
        await started(server, "x")
        pids = (await server.list())[0].pids
        for pid in pids:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            status = {line.partition(":")[0]: line.partition(":")[2].split() for line in lines}
            assert status["Uid"] == [str(chosen.uid)] * 4
            assert status["NoNewPrivs"] == ["1"]
            assert not chosen.switches or {*status["CapEff"], *status["CapBnd"], *status["CapInh"]} == {"0" * 16}
            assert not chosen.switches or status["Groups"] == []
            assert re.search(r"Max core file size +1 +1 ", Path(f"/proc/{pid}/limits").read_text())
        watch = server.watch()
        os.kill(pids[0], signal.SIGSEGV)
        assert "SIGSEGV" in (await asyncio.wait_for(anext(watch), 10)).reason
        assert not list(tmp_path.rglob("*core*"))


async def test_a_program_may_be_named_by_a_link(tmp_path: Path, range_: PortRange) -> None:
    kind = flavour("nginx")
    for name in ("named", "real"):
        (tmp_path / name).mkdir(mode=0o755)
    shutil.copy(BACKENDS["nginx"].find(None).program, tmp_path / "real" / "nginx")
    (tmp_path / "named" / "nginx").symlink_to(tmp_path / "real" / "nginx")
    named = Flavour("nginx", kind.backend, {kind.backend: tmp_path / "named" / "nginx"})
    async with local(config(tmp_path / "d", range_, named)) as server:
        assert await started(server, "x")


async def test_another_sessions_files_are_out_of_reach(
    confinement: Confinement, tmp_path: Path, range_: PortRange
) -> None:
    secret = tmp_path / "gateway.key"
    secret.write_text("the gateway's")
    secret.chmod(0o600)
    script = """
        echo own: $(cat 1/leaf.pem | grep -c BEGIN)
        for file in "$0"/y/1/leaf.pem "$0"/y/key.pem "$0"/gateway.key "$0"/lock /etc/shadow; do
            cat "$file" >/dev/null && echo "read $file"
        done
        ls "$0"/y && echo listed
        for file in x ../y/x 1/x key.pem 1/leaf.pem nginx.conf proxy-1.handle /tmp/scistream-x; do
            (echo x >"$file") && echo "wrote $file"
        done
        mv 1 2 && echo moved
        echo x >run/mine && echo run: yes
        /bin/sh -c 'cat "$0"/y/1/leaf.pem' "$0" && echo read by a child
        echo done
    """
    kind = flavour("nginx")
    user = "" if confinement.switches else confinement.user
    async with local(config(tmp_path, range_, kind, user=user)) as server:
        for id in "xy":
            await started(server, id)
        lines = (await said(script.replace('"$0"', str(tmp_path)), tmp_path / "x", confinement)).splitlines()
        found = [line for line in lines if "denied" not in line and "cannot" not in line]
        assert found == ["own: 2", "run: yes", "done"]
        assert sum("denied" in line for line in lines) >= 14


@needs_landlock
async def test_another_sessions_process_is_out_of_reach(
    confinement: Confinement, tmp_path: Path, range_: PortRange
) -> None:
    user = "" if confinement.switches else confinement.user
    async with local(config(tmp_path, range_, flavour("nginx"), user=user)) as server:
        mine, other = [await started(server, id) for id in "xy"]
        files = "mem fd/3 cwd/key.pem" + (" environ maps" if os.geteuid() or confinement.switches else "")
        script = f"""
            for pid in {other} {os.getpid()}; do
                kill -0 $pid && echo signalled
                for file in {files}; do
                    head -c1 /proc/$pid/$file >/dev/null && echo $file
                done
            done
            kill -0 $$ && echo done
        """
        lines = (await said(script, tmp_path / "x", confinement)).splitlines()
        assert [line for line in lines if line and "denied" not in line and "permitted" not in line] == ["done"]
        assert mine != other


@needs_landlock
@pytest.mark.skipif(landlock.abi() < 4, reason="this kernel's Landlock knows no ports")
async def test_it_takes_no_port(confinement: Confinement, tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    confinement.give(tmp_path / RUN)
    config(tmp_path, PortRange(1, 2), Flavour("", "auto"))
    script = "/usr/bin/perl -MSocket -e 'socket(S,AF_INET,SOCK_STREAM,0) or die; "
    script += 'bind(S,sockaddr_in(0,INADDR_LOOPBACK)) ? print "bound" : print "refused: $!"\''
    assert "refused: Permission denied" in await said(script, tmp_path, confinement)


async def test_an_abort_leaves_no_core_where_one_could_be_written(confinement: Confinement, tmp_path: Path) -> None:
    (tmp_path / RUN).mkdir()
    confinement.give(tmp_path / RUN)
    config(tmp_path, PortRange(1, 2), Flavour("", "auto"))
    script = "cd run && touch there && for signal in ABRT SEGV; do sh -c 'kill -'$signal' $$'; done; ls"
    assert "there" in await said(script, tmp_path, confinement)
    assert [path.name for path in (tmp_path / RUN).iterdir()] == ["there"]


async def test_users_and_places_that_cannot_be(tmp_path: Path, range_: PortRange) -> None:
    kind = flavour("nginx")
    with pytest.raises(FailedPrecondition, match=r"user 'no-such' is not known here; make it with: useradd"):
        await LocalDataServer(config(tmp_path, range_, kind, user="no-such")).open()
    if choose("").switches:
        settings = config(tmp_path / "d", range_, kind)
        tmp_path.chmod(0o700)
        with pytest.raises(FailedPrecondition, match=f"cannot pass {tmp_path} on the way"):
            await LocalDataServer(settings).open()


def test_what_a_proxy_wrote_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("1")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_text("9" * 1000)
    assert [_written(tmp_path / name) for name in ("link", "fifo", "none", "secret")] == ["", "", "", "1"]
    assert len(_written(tmp_path / "long")) == 32
