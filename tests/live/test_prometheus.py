"""A real Prometheus scrapes real gateways, with the alert rules of `deploy/` loaded, while data flows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateways import gateway
from tests.support.ports import port_block
from tests.support.sessions import echo, exchange, open_pair

ROOT = Path(__file__).parents[2]
ALERTS, DASHBOARD = ROOT / "deploy/prometheus/alerts.yml", ROOT / "deploy/grafana/scistream.json"
PROMETHEUS, PROMTOOL = (Path(sys.executable).with_name(name) for name in ("prometheus", "promtool"))
needs_prometheus = pytest.mark.skipif(not PROMETHEUS.exists(), reason="Prometheus is not there: make prometheus")
SENT = 3_000_000


class Monitoring:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._api = f"http://127.0.0.1:{port}/api/v1/"

    def ask(self, path: str, **query: str) -> Any:
        """Ask its API."""
        with urllib.request.urlopen(f"{self._api}{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def value(self, expression: str) -> float | None:
        """Give the one value of an expression."""
        found = self.ask("query", query=expression)["result"]
        return float(found[0]["value"][1]) if found else None

    def until(self, expression: str, wanted: float) -> None:
        """Wait until an expression has a value."""
        deadline = time.monotonic() + 60
        while (found := self.value(expression)) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {wanted}"
            time.sleep(0.2)

    def firing(self) -> set[str]:
        """Name the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}


@contextmanager
def monitoring(directory: Path, targets: list[str]) -> Iterator[Monitoring]:
    """Run a Prometheus that looks at gateways, with the alert rules."""
    port = port_block()
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": [{"job_name": "scistream", "static_configs": [{"targets": targets}]}],
    }
    directory.mkdir()
    file = directory / "prometheus.yml"
    file.write_text(json.dumps(config))  # JSON is YAML
    options = [f"--config.file={file}", f"--storage.tsdb.path={directory / 'data'}"]
    with (directory / "log").open("w") as log:
        process = subprocess.Popen([PROMETHEUS, *options, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    try:
        found = Monitoring(port)
        deadline = time.monotonic() + 60
        while True:
            try:
                found.ask("status/buildinfo")
                break
            except OSError:
                assert process.poll() is None, (directory / "log").read_text()
                assert time.monotonic() < deadline, (directory / "log").read_text()
                time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait(30)


@needs_prometheus
def test_prometheus_sees_what_happens(tmp_path: Path) -> None:
    """Sessions and bytes, to the byte; no alert while all is well; every query of rules and dashboard is answered."""
    ports = port_block(), port_block()
    listen = [{"SCISTREAM_METRICS__LISTEN": f'["127.0.0.1:{port}"]'} for port in ports]
    targets = [f"127.0.0.1:{port}" for port in ports]
    with (
        gateway(tmp_path / "aps", **listen[0]) as aps,
        gateway(tmp_path / "alcf", **listen[1]) as alcf,
        aps.client() as producer,
        alcf.client() as consumer,
        monitoring(tmp_path / "prometheus", targets) as watching,
        echo() as app,
    ):
        session = open_pair(producer, consumer, [str(app.endpoint)], 1, ("nginx", "nginx"))
        watching.until('sum(scistream_sessions{state="ACTIVE"})', 2)
        with session.connect() as stream:
            exchange(stream, bytes(SENT))
        for direction in ("from_producer", "from_consumer"):
            watching.until(f'scistream_traffic_bytes_total{{role="PROD",direction="{direction}"}}', SENT)
        session.release()
        watching.until('sum(scistream_sessions_ended_total{outcome="RELEASED"})', 2)
        watching.until("sum(scistream_stream_connections_total)", 2)
        assert watching.firing() == set()
        rules = [rule for group in watching.ask("rules")["groups"] for rule in group["rules"]]
        assert {rule["health"] for rule in rules} == {"ok"}
        for expression in _expressions():
            watching.ask("query", query=expression)  # what cannot be evaluated is an HTTP error
        alcf.stop()
        watching.until(f'up{{instance="{targets[1]}"}}', 0)


@needs_prometheus
def test_the_rules_are_sound() -> None:
    checked = subprocess.run([PROMTOOL, "check", "rules", ALERTS], check=False, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_rules_and_dashboard_name_only_metrics_that_there_are() -> None:
    documented = set(
        re.findall(r"^\| `(scistream_\w+)` \|", (ROOT / "docs/operator/watching.md").read_text(), re.MULTILINE)
    )
    used = re.findall(r"scistream_[a-z_]+[a-z]", ALERTS.read_text() + " ".join(_expressions()))
    named = {name.removesuffix("_bucket") for name in used}
    assert len(named) > 8
    assert named <= documented


def _expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"].replace("$instance", ".*") for panel in panels for target in panel["targets"]]
