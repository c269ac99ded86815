"""The table of attacks in the docs and the tests are about the same."""

from __future__ import annotations

import ast
import re
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def _tests(file: Path) -> set[str]:
    tree = ast.walk(ast.parse(file.read_text()))
    functions = (node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {name for name in functions if name.startswith("test_")}


def test_every_attack_of_the_table_is_a_test_and_every_test_is_in_the_table() -> None:
    page = (_ROOT / "docs" / "security.md").read_text()
    told = re.findall(r"`(tests/[a-z0-9_/]+\.py)::(test_\w+)`", page)
    assert len(told) > 30
    for file, name in told:
        assert name in _tests(_ROOT / file), (file, name)
    here = {
        (str(file.relative_to(_ROOT)), name)
        for file in Path(__file__).parent.glob("test_*.py")
        if file.name != Path(__file__).name
        for name in _tests(file)
    }
    assert here <= set(told), here - set(told)
