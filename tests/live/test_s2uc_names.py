"""Gateways by name, on a host whose name server does not answer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a network and a mount namespace of its own: a name server that takes every question and gives no answer.
_ROOT = Path(__file__).parents[2]
_HOST = """
ip link set lo up && mount --bind hosts /etc/hosts && mount --bind resolv.conf /etc/resolv.conf || exit 1
"$0" -c "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('127.0.0.9', 53)); time.sleep(60)" &
silent=$!
"$0" -m s2cs init gw --host gw.aps.example --port 6200 >/dev/null && {
    SCISTREAM_SERVER__ON_SHUTDOWN=release "$0" -m s2cs serve --config gw/s2cs.toml 2>log &
    serving=$!
}
for i in $(seq 100); do grep -q "serves on" log && break; sleep 0.1; done
"$0" -m s2uc gateway add aps gw.aps.example:6200 --ca gw/certs/ca.crt --token-file gw/token && "$0" -m s2uc check-auth
status=$?
kill $silent $serving; wait
exit $status
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces of its own take root")
def test_a_name_that_the_host_knows_needs_no_name_server(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1 localhost gw.aps.example\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.9\n")
    command = ["unshare", "--net", "--mount", "sh", "-c", _HOST, sys.executable]
    environ = {**os.environ, "SCISTREAM_CONFIG_DIR": str(tmp_path / "user"), "PYTHONPATH": str(_ROOT)}
    environ.pop("GRPC_DNS_RESOLVER", None)  # this process has imported scistream
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.stderr, (tmp_path / "log").read_text())
    assert "admin (admin) by token" in done.stdout
