"""The house: who may import whom."""

from __future__ import annotations

import ast
import sys
from itertools import accumulate
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {"scistream": {"s2cs", "s2uc"}, "s2cs": {"s2uc"}, "s2uc": {"s2cs"}}
# The machine's own module is pure: it imports nothing but the standard library and our words.
PURE = {"scistream/machine.py", "scistream/vocabulary.py", "scistream/errors.py", "scistream/diagram.py"}
LINUX_ONLY = {"systemd", "pyroute2", "epoll", "pidfd_open", "pidfd_send_signal", "memfd_create", "sched_getaffinity"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Name the top-level packages that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute here"
            found.add((node.module or "").partition(".")[0])
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, (ast.Name, ast.Attribute))
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr)
            in {"import_module", "__import__", "find_spec", "files"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            found.add(node.args[0].value.partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_package_imports_one_it_must_not_know(package: str) -> None:
    assert modules(package)
    crimes = {str(path.relative_to(ROOT)): imports(path) & FORBIDDEN[package] for path in modules(package)}
    assert {path: names for path, names in crimes.items() if names} == {}


@pytest.mark.parametrize("path", sorted(PURE))
def test_the_rules_import_the_standard_library_only(path: str) -> None:
    assert imports(ROOT / path) <= sys.stdlib_module_names | {"scistream"}


def at_once(path: Path) -> set[str]:
    """Name the modules of ours that importing a file imports, but for the packages that it is in."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:  # what stands in functions and under TYPE_CHECKING comes later
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    found |= {package for name in found for package in accumulate(name.split("."), "{}.{}".format)}
    return found - set(accumulate(named(path).split("."), "{}.{}".format))


def named(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_each_module_can_be_imported_first() -> None:
    """No ring of imports is left when those that need none are taken away, and then those that needed these."""
    paths = {named(path): path for package in FORBIDDEN for path in modules(package)}
    needs = {name: at_once(path) & paths.keys() for name, path in paths.items()}
    while free := {name for name, needed in needs.items() if not needed}:
        needs = {name: needed - free for name, needed in needs.items() if name not in free}
    assert needs == {}


def test_the_machine_reads_no_clock_and_does_no_io() -> None:
    assert imports(ROOT / "scistream/machine.py") <= {
        "__future__",
        "collections",
        "dataclasses",
        "enum",
        "types",
        "scistream",
    }


def test_the_users_side_imports_nothing_that_only_linux_has() -> None:
    for path in [*modules("scistream"), *modules("s2uc")]:
        tree = ast.parse(path.read_text())
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | imports(path)
        assert not used & LINUX_ONLY, path
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert not any(isinstance(text, str) and text.startswith(("/proc/", "/sys/")) for text in texts), path
