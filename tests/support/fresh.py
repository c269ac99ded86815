"""A fresh checkout and a newcomer's environment."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def checkout(target: Path) -> Path:
    """Copy what a fresh clone of this tree would have."""
    skipped = shutil.ignore_patterns(".venv", ".git", "__pycache__", ".*_cache", ".hypothesis", "site", "build", "dist")
    return Path(shutil.copytree(ROOT, target, ignore=skipped))


def clean_environment(home: Path) -> dict[str, str]:
    """Give an environment as a newcomer's: an empty home, no virtual environment, no settings of ours."""
    left_out = re.compile(r"VIRTUAL_ENV|PYTHON.*|SCISTREAM_.*|MAKE.*|MFLAGS")
    kept = {k: v for k, v in os.environ.items() if not left_out.fullmatch(k)}
    kept["PATH"] = os.pathsep.join(p for p in kept["PATH"].split(os.pathsep) if Path(p) != Path(sys.executable).parent)
    home.mkdir()
    return {**kept, "HOME": str(home)}
