"""The project's own files: what they name exists, and what exists is named."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest

import s2uc
from s2cs.cli import cli as s2cs_cli
from s2cs.identity.settings import Certificates, Introspection, Oidc
from s2cs.kubernetes_settings import KubernetesNode, Toleration
from s2cs.node_settings import NodeServer
from s2cs.s2ds.backends import BACKENDS
from s2cs.s2ds.launchers import LAUNCHERS
from s2cs.settings import FIXED, Node, Settings
from s2cs.tables import Table
from s2uc.cli import cli as s2uc_cli
from scistream import diagram, protodoc
from scistream.proto import scistream_pb2 as pb

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
CONFIGURATION = "".join(
    (ROOT / f"docs/operator/{page}.md").read_text() for page in ("configuration", "users", "upkeep")
)


def dependencies() -> set[str]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return {re.split(r"[<>=\[ ]", line)[0] for group in groups for line in group}


def normal(name: str) -> str:
    return name.lower().replace("_", "-")


# Documentation against code


def test_the_protocol_page_is_not_stale() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "scistream.diagram", "--check"], cwd=ROOT, stderr=subprocess.PIPE, check=False
    )
    assert run.returncode == 0, run.stderr.decode()


def test_every_method_and_field_is_on_the_protocol_page() -> None:
    text = (ROOT / diagram.PAGE).read_text()
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods:
        assert f"| `{method.name}` | `{method.input_type.name}` |" in text
    for name, message in pb.DESCRIPTOR.message_types_by_name.items():
        section = text.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        rows = [(name, int(number)) for name, number in re.findall(r"^\| `(\w+)` \| (\d+) \|", section, re.MULTILINE)]
        assert rows == [(field.name, field.number) for field in message.fields]


def test_a_proto_file_that_is_not_understood_is_told() -> None:
    with pytest.raises(ValueError, match="oneof"):
        protodoc.read("message A {\n  oneof b {\n    string c = 1;\n  }\n}\n")


@pytest.mark.parametrize("part", ["REQUESTED --> RESERVED", "SHA-256 of the key", "| `hello` |"])
def test_a_stale_protocol_page_is_found_and_mended(part: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / diagram.PAGE).read_text().replace(part, "something else"))
    assert diagram.main([str(page), "--check"]) == 1
    assert diagram.main([str(page)]) == 0
    assert diagram.main([str(page), "--check"]) == 0
    assert page.read_text() == (ROOT / diagram.PAGE).read_text()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        diagram.main([str(page)])


@pytest.mark.parametrize(
    ("heading", "table"),
    [("[auth.oidc]", Oidc), ("[auth.introspection]", Introspection), ("auth.certificates", Certificates)],
)
def test_every_setting_of_a_method_is_in_the_docs(heading: str, table: type[Table]) -> None:
    section = re.search(rf"^## \[{re.escape(heading)}\]\n(.*?)(?=^## )", CONFIGURATION, re.DOTALL | re.MULTILINE)
    common = re.search(r"^## Methods from outside\n(.*?)(?=^## )", CONFIGURATION, re.DOTALL | re.MULTILINE)
    assert section
    assert common
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section[1] + common[1], re.MULTILINE))
    assert set(table.model_fields) <= set(rows)
    for key, field in table.model_fields.items():
        if found := re.fullmatch("`(.*)`", rows[key]):
            value = tomllib.loads(f"v = {found[1]}")["v"]
            assert (tuple(value) if isinstance(value, list) else value) == field.get_default(call_default_factory=True)
        else:
            assert field.is_required() or field.default in (None, "", "cert")


@pytest.mark.parametrize(
    ("page", "heading", "table"),
    [
        ("configuration", r"What each `\[\[s2ds.nodes\]\]` has", Node),
        ("configuration", r"What each `\[\[kubernetes.nodes\]\]` has", KubernetesNode),
        ("configuration", r"What each `\[\[kubernetes.tolerations\]\]` has", Toleration),
        ("nodes", "`\\[server\\]` has", NodeServer),
    ],
)
def test_every_setting_of_a_node_is_in_the_docs(page: str, heading: str, table: type[Table]) -> None:
    rows = (
        re.split(heading, (ROOT / f"docs/operator/{page}.md").read_text())[1].partition("\n\n")[2].partition("\n\n")[0]
    )
    cells = re.findall(r"^\| (`.*?) \|", rows, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(table.model_fields)


@pytest.mark.parametrize("table", Settings.model_fields)
def test_every_setting_is_in_the_docs_with_its_default(table: str) -> None:
    section = re.search(rf"^## \[{table}\]\n(.*?)(?=^## )", CONFIGURATION, re.DOTALL | re.MULTILINE)
    assert section
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section[1], re.MULTILINE))
    fields = Settings.model_fields[table].annotation.model_fields  # type: ignore[union-attr]
    documented = {key for key in rows if key not in BACKENDS}
    assert documented == set(fields)
    assert Settings.model_validate({table: {k: tomllib.loads(f"v = {rows[k]}")["v"] for k in fields}}) == Settings()


def test_the_docs_say_what_a_reload_cannot_change() -> None:
    said = CONFIGURATION.partition("## Changing a running gateway")[2].partition("##")[0]
    for table, keys in FIXED.items():
        for name in keys or [f"[{table}]"]:
            assert f"`{name}`" in said


def test_every_backend_and_launcher_is_in_the_docs() -> None:
    for name, backend in BACKENDS.items():
        row = re.search(rf"^\| `{name}` \| ([0-9.]+).*\|$", CONFIGURATION, re.MULTILINE)
        assert row, name
        assert row[1] == ".".join(map(str, backend.minimum))
        said = [cell.strip() == "yes" for cell in row[0].split("|")[3:6]]
        assert said == [c in backend.capabilities for c in ("mutual-tls", "rate-limit", "graceful-stop")]
    for name in LAUNCHERS:
        assert f'`"{name}"`' in CONFIGURATION


@pytest.mark.parametrize("group", [s2cs_cli, s2uc_cli], ids=["s2cs", "s2uc"])
def test_every_command_is_in_the_changelog_or_a_page(group: click.Group) -> None:
    text = "".join(path.read_text() for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
    names = group.list_commands(click.Context(group))
    assert names
    for name in names:
        assert re.search(rf"[` ]{name}[` ,.]", text), name


def test_every_dependency_has_its_reason_and_its_pin() -> None:
    decisions = (ROOT / "docs/developer/decisions.md").read_text()
    pinned = {normal(line.partition("==")[0]) for line in CONSTRAINTS}
    for name in dependencies():
        assert re.search(rf"^\| `{re.escape(name)}` \| \S", decisions, re.MULTILINE), f"{name} has no reason"
        assert normal(name) in pinned, f"{name} has no pin"


def test_constraints_are_pins_and_nothing_else() -> None:
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.+]*", line)


def test_pages_link_to_what_exists() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True)
    assert (tmp_path / "site/protocol.html").exists()
    reference = (tmp_path / "site/api/s2uc.html").read_text()
    for name in {*s2uc.__all__} - {"aio", "login", "GatewayClient", "Ticket"}:
        assert re.search(rf'id="(s2uc|scistream)[\w.]*\.{name}"', reference), f"{name} is not in the API reference"


# Make, CI and set-up


def makefile() -> dict[str, str]:
    """Give the recipe of each target."""
    found = re.findall(r"^([a-z-]+):[^=\n]*\n((?:\t.*\n)*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return dict(found)


def test_what_readme_promises_is_in_the_makefile() -> None:
    recipes = makefile()
    assert {"demo", "test", "test-engines", "lint", "bench", "soak", "docs", "proto", "help", "clean"} <= set(recipes)
    assert "s2uc demo" in recipes["demo"]
    assert 'pytest -m "not soak and not engines"' in recipes["test"]
    assert "pytest -m engines" in recipes["test-engines"]
    commands = re.findall(r"^make (\w+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert commands == ["demo", "test"]


def test_ci_runs_lint_and_the_readmes_test_command() -> None:
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


SCRIPTS = sorted([*ROOT.glob("deploy/**/*.sh"), *ROOT.glob("deploy/deb/p*"), ROOT / ".ci/run"])


@pytest.mark.parametrize("script", [str(path.relative_to(ROOT)) for path in SCRIPTS])
def test_scripts_are_sound(script: str) -> None:
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)
    assert (ROOT / script).stat().st_mode & 0o111


class Tools:
    """A PATH of nothing but what is put there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "log"
        for name in ("sh", "tr", "grep", "cat", "env", "rm", "tee", "chmod"):
            program = next(p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists())
            (directory / name).symlink_to(program)

    def add(self, name: str, body: str = "") -> None:
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{self.log}"\n{body}\n')
        path.chmod(0o755)

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # Without the system's own directories, which the script adds for the sake of users.
        text = (ROOT / script).read_text().replace('PATH="$PATH:/usr/sbin:/sbin"', "")
        copy = self.directory / "script"
        copy.write_text(text)
        environment = {"PATH": str(self.directory)}
        command = [str(self.directory / "sh"), str(copy), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    @property
    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    return Tools(tmp_path)


STATIC_NGINX = "echo 'configure arguments: --with-stream --with-stream_ssl_module' >&2"


def test_proxies_that_are_there_are_left_alone(tools: Tools) -> None:
    for name, body in (("stunnel4", ""), ("haproxy", ""), ("nginx", STATIC_NGINX), ("apt-get", ""), ("id", "echo 0")):
        tools.add(name, body)
    run = tools.run("deploy/install-proxies.sh")
    assert (run.returncode, run.stderr) == (0, "")
    assert "apt-get" not in tools.calls


def test_only_what_is_missing_is_installed_by_dnf(tools: Tools) -> None:
    for name, body in (("nginx", STATIC_NGINX), ("dnf", ""), ("id", "echo 0")):
        tools.add(name, body)
    assert tools.run("deploy/install-proxies.sh").returncode == 0
    assert "dnf -q install -y stunnel haproxy\n" in tools.calls


def test_sudo_is_used_where_one_is_not_root(tools: Tools) -> None:
    for name, body in (("nginx", STATIC_NGINX), ("dnf", ""), ("sudo", '"$@"'), ("id", "echo 1000")):
        tools.add(name, body)
    assert tools.run("deploy/install-proxies.sh").returncode == 0
    assert "sudo dnf -q install" in tools.calls


@pytest.mark.parametrize(
    ("uid", "sentence"), [("1000", "neither root nor is there sudo"), ("0", "neither apt-get nor dnf")]
)
def test_what_cannot_be_installed_is_said(tools: Tools, uid: str, sentence: str) -> None:
    tools.add("id", f"echo {uid}")
    run = tools.run("deploy/install-proxies.sh")
    assert run.returncode == 1
    assert sentence in run.stderr


def test_the_first_good_python_makes_the_environment(tools: Tools) -> None:
    tools.add("python3.13", "exit 127")  # as a version manager's stand-in for one that is not installed
    tools.add("python3.12")
    assert tools.run("deploy/make-venv.sh", "somewhere").returncode == 0
    assert tools.calls.endswith("python3.12 -m venv somewhere\n")


def test_no_good_python_is_said(tools: Tools) -> None:
    tools.add("python3", "exit 1")
    run = tools.run("deploy/make-venv.sh", "somewhere")
    assert run.returncode == 1
    assert "there is no Python of 3.11 or newer with the venv module here" in run.stderr
