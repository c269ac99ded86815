"""What a packager builds works where there is no checkout."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.support.fresh import ROOT, checkout, clean_environment


@pytest.mark.timeout(500)
def test_the_wheel_runs_the_demo_in_a_clean_environment(tmp_path: Path) -> None:
    dist = tmp_path / "dist"
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), str(checkout(tmp_path / "tree"))]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = dist.glob("*.whl")
    (sdist,) = dist.glob("*.tar.gz")

    # build makes the wheel from the source distribution, so that one is complete
    templates = {f"s2cs/templates/{path.name}" for path in (ROOT / "templates").glob("*.j2")}
    names = set(zipfile.ZipFile(wheel).namelist())
    assert len(templates) >= 3
    assert templates | {"s2cs/py.typed", "s2uc/py.typed", "scistream/py.typed"} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"scistream", "s2cs", "s2uc"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(sdist) as archive:
        inside = {member.name.split("/", 1)[1] for member in archive.getmembers() if "/" in member.name}
    assert {"Makefile", "README.md", "constraints.txt", "certs/README.md", "tests/unit/test_machine.py"} <= inside
    assert not any(name.startswith((".venv", ".git/")) or name.endswith((".key", ".pyc")) for name in inside)

    environment = clean_environment(tmp_path / "home")
    venv, elsewhere = tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", str(venv)], env=environment, check=True)
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"scistream[embedded] @ {wheel.as_uri()}"], env=environment, check=True, timeout=360)

    environment["PATH"] = os.pathsep.join([str(venv / "bin"), environment["PATH"]])
    places = "import s2cs, s2uc, scistream; print(s2cs.__file__, s2uc.__file__, scistream.__file__)"
    found = subprocess.run(
        ["python", "-c", places], cwd=elsewhere, env=environment, check=True, capture_output=True, text=True
    )
    assert all(place.startswith(str(venv)) for place in found.stdout.split())
    before = set((tmp_path / "home").iterdir())
    demo = subprocess.run(
        ["s2uc", "demo"],
        cwd=elsewhere,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout + demo.stderr
    assert re.search(r"frames checked +[1-9]", demo.stdout)
    assert "TLSv1.3" in demo.stdout
    assert list(elsewhere.iterdir()) == []
    assert set((tmp_path / "home").iterdir()) == before
