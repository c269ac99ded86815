"""What the README says of a fresh checkout: `make demo`, and the installation by pip. The rest is in test_guides.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fresh import checkout, clean_environment
from tests.support.pages import ROOT, blocks

README = ROOT / "README.md"


def test_every_shell_block_of_the_readme_is_known_here() -> None:
    known = ["make demo\n", "make test\n", "python3 -m pip install '.[embedded]'\n"]
    assert [block.text for block in blocks(README, "sh")] == known


@pytest.mark.timeout(400)
def test_make_demo_in_a_fresh_checkout(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "scistream")
    environment = clean_environment(tmp_path / "home")
    for _ in range(2):
        run = subprocess.run(
            ["make", "demo"],
            cwd=tree,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=360,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
        assert re.search(r"frames checked +[1-9]", run.stdout)
    assert "installing" not in run.stdout  # the second time there is nothing to install


@pytest.mark.timeout(400)
def test_pip_install_as_the_readme_says(tmp_path: Path) -> None:
    tree = checkout(tmp_path / "scistream")
    environment = clean_environment(tmp_path / "home")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=environment, check=True)
    environment["PATH"] = os.pathsep.join([str(tmp_path / "venv/bin"), environment["PATH"]])
    environment["PIP_CONSTRAINT"] = str(ROOT / "constraints.txt")  # what is tested is what is pinned
    command = blocks(README, "sh")[2].text
    subprocess.run(["bash", "-c", f"{command.strip()} --quiet"], cwd=tree, env=environment, check=True, timeout=360)
    for program in ("s2cs", "s2uc"):
        run = subprocess.run([program, "--version"], cwd=tmp_path, env=environment, check=True, capture_output=True)
        assert b"0.1" in run.stdout
