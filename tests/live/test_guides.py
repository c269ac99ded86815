"""Every command of the README, of Getting started and of the user's and the operator's guide, run as it is written.

The pages are run in the order of the site, on hosts with the pages' own addresses (`tests/support/hosts.py`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hosts import ADDRESSES, Directories, Hosts, Namespaces, hosts, namespaces_can_be_made
from tests.support.pages import ROOT, blocks, section

pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="the pages use curl")

README = ROOT / "README.md"
FRAME = os.urandom(3_000_000)


@pytest.fixture(scope="module")
def facilities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    kind = Namespaces if namespaces_can_be_made() else Directories
    with hosts(tmp_path_factory.mktemp("hosts"), kind) as found:
        for host in ADDRESSES:
            (found.home(host) / "examples").symlink_to(ROOT / "examples")
        yield found


def test_from_nothing_to_a_stream_between_two_hosts(facilities: Hosts) -> None:
    frames = facilities.home("instrument") / "frames"
    frames.mkdir()
    (frames / "frame.bin").write_bytes(FRAME)
    said: dict[str, str] = {}
    during: set[tuple[str, int]] = set()
    for host, command in (pair for block in blocks(README, "console") for pair in block.commands()):
        said[f"{host}$ {command.split(' --', 1)[0]}"] = facilities.run(host, command)
        if command.startswith("s2uc request"):
            during = facilities.listeners()

    assert (facilities.home("compute") / "frame.bin").read_bytes() == FRAME
    assert "ACTIVE" in said["laptop$ s2uc status scan-7"]
    assert "ACTIVE" in said["laptop$ s2uc request"]
    sessions = {(address, port) for address, port in during if 30000 <= port <= 30999}
    assert {address for address, _ in sessions} == {facilities.here("203.0.113.5"), facilities.here("10.2.0.5")}
    assert len(sessions) == 8
    assert not facilities.listeners() & sessions


def test_the_users_guide(facilities: Hosts) -> None:
    facilities.run("alcf-gw", "s2cs user add bob --config gateway/s2cs.toml --token-file bob.token")  # of two-users.md
    said = {page.name: run(facilities, page) for page in section("User guide")}
    assert (facilities.home("compute") / "again.bin").read_bytes() == FRAME
    (digest,) = re.findall(r"received 100 frames, sha256 ([0-9a-f]{64})", said["workflows.md"])
    assert f"sent 100 frames, sha256 {digest}" in (facilities.home("instrument") / "log").read_text()
    assert "received 50 whole images of det:image" in said["workflows.md"]


def test_the_operators_guide(facilities: Hosts) -> None:
    for page in section("Operator guide"):
        run(facilities, page)


def test_nothing_is_left(facilities: Hosts) -> None:
    servers = [process for process in facilities.running if "s2cs" in str(process.args)]
    assert len(servers) == 2
    assert all(process.poll() is None for process in servers)
    facilities.run("aps-gw", "s2cs sessions --config gateway/s2cs.toml 2>&1 | grep -q 'no sessions'")
    facilities.close()
    assert not facilities.listeners()


def run(facilities: Hosts, page: Path) -> str:
    """Run what a page shows, from top to bottom; what it prints."""
    said = ""
    for block in blocks(page):
        if block.language == "console" and block.note not in ("not run", "run by"):
            for host, command in block.commands():
                said += facilities.run(host, command, (0, 1) if block.note == "exit 0 or 1" else (0,))
        if block.language == "python" and not block.note:
            (facilities.home("laptop") / "script.py").write_text(facilities.here(block.text))
            said += facilities.run("laptop", "python3 script.py")
    return said


def test_a_command_that_fails_is_told(tmp_path: Path) -> None:
    with hosts(tmp_path, Directories) as found:
        with pytest.raises(AssertionError, match=re.escape("laptop$ s2uc gateway add x")):
            found.run("laptop", "s2uc gateway add x nowhere:1")
        with pytest.raises(AssertionError, match="no host of the pages"):
            found.run("elsewhere", "true")
