"""The Parsl example: its two apps in workers of two executors, with a session between them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tests.support.user import facilities

pytestmark = pytest.mark.skipif(not find_spec("parsl"), reason="there is no Parsl here: pip install parsl")


def test_the_example(tmp_path: Path) -> None:
    with facilities(tmp_path / "facilities") as both:
        environment = {
            **os.environ,
            "SCISTREAM_CONFIG_DIR": str(both.user.config),
            # The workers find the functions' module there, and Parsl its own programs.
            "PYTHONPATH": str(ROOT / "examples"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }
        command = [sys.executable, str(ROOT / "examples/parsl_workflow.py"), "127.0.0.1"]
        run = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
        )
        assert run.returncode == 0, run.stderr
        assert re.fullmatch(r"received [0-9a-f]{64}\n", run.stdout)
        assert both.left() == {}
