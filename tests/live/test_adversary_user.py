"""Attacks on the user's side: gateways that lie, hang or mean ill, terminals that go, values that are odd.

Whatever it is, `s2uc` ends in time, with one sentence, and nothing is left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from s2uc.config import KnownGateway, UserConfig
from s2uc.gateway import Gateway
from scistream.proto import scistream_pb2 as pb
from scistream.vocabulary import Endpoint, Role, Uid
from scistream.wire import grpc
from scistream.x509 import DevelopmentCA, PrivateKey
from tests.live.test_demo import _left as left_of_demo
from tests.support.hostile import Answers, hostile_gateway, listener, refusing
from tests.support.sessions import Echo, echo, in_an_hour
from tests.support.user import Facilities, User, facilities

_EVIL = "\x1b[2J\x1b]0;evil\x07\u202e\r\nsession released"
_S2UC = [sys.executable, "-m", "s2uc"]
_REQUEST = ("request", "--producer", "aps", "--consumer", "alcf")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facilities]:
    with facilities(tmp_path_factory.mktemp("facilities")) as both:
        yield both
        assert both.left() == {}


@pytest.fixture
def producer() -> Iterator[Echo]:
    with echo() as server:
        yield server


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path / "config")


def _knows(user: User, *gateways: Gateway) -> None:
    for gateway in gateways:
        ca = (gateway.ca_pem or b"").decode()
        UserConfig(user.config).save_gateway(KnownGateway(gateway.name, gateway.endpoint, ca, gateway.token))


# Gateways that lie

_SOON = Timestamp(seconds=int(time.time()) + 86400)


def _resp(**fields: Any) -> Callable[[Any, Any], pb.Response]:
    """Answer REQ as a gateway does, but for these fields."""
    csr = PrivateKey.generate().csr(Uid("x"), Role.PROD)
    good = {"listeners": ["127.0.0.1:20000"], "csr": csr, "backend": "nginx", "state": "RESERVED", "expires_at": _SOON}
    return lambda request, context: pb.Response(**{**good, **fields})


def _infos(**fields: Any) -> Callable[[Any, Any], pb.SessionList]:
    good = {"uid": "u", "role": "PROD", "state": "ACTIVE", "expires_at": _SOON, "created_at": _SOON}
    return lambda request, context: pb.SessionList(sessions=[pb.SessionInfo(**{**good, **fields})])


def _events(kind: int = 1, at: Timestamp = _SOON, message: str = "", **fields: Any) -> Callable[[Any, Any], Any]:
    (info,) = _infos(**fields)(None, None).sessions
    return lambda request, context: iter([pb.SessionEvent(kind=kind, at=at, message=message, session=info)])


_HELLO: Answers = {"hello": lambda request, context: pb.AppResponse(state="ANNOUNCED")}
_RUN = ("run", "u", "--role", "consumer", "--gateway", "aps", "--", "echo", "started")


@pytest.mark.parametrize(
    ("answers", "command"),
    [
        ({"req": _resp(listeners=[_EVIL])}, _REQUEST),
        ({"req": _resp(listeners=["127.0.0.1:1"] * 9000)}, _REQUEST),
        ({"req": _resp(csr=b"rubbish"), **_HELLO}, _REQUEST),
        ({"req": _resp(expires_at=Timestamp(seconds=2**62))}, _REQUEST),
        ({"req": _resp(expires_at=Timestamp(seconds=-60_000_000_000))}, _REQUEST),
        ({"req": _resp(expires_at=Timestamp(seconds=5, nanos=-(2**31)))}, _REQUEST),
        ({"req": _resp(state="EVIL")}, _REQUEST),
        ({"list": _infos(role="EVIL")}, ("status", "u")),
        ({"list": _infos(state="EVIL")}, ("list",)),
        ({"list": _infos(created_at=Timestamp(seconds=2**62))}, ("list", "--all")),
        ({"list": _infos(), "watch": _events(at=Timestamp(seconds=2**62))}, ("watch", "u")),
        ({"list": _infos(), "watch": lambda request, context: iter(())}, ("watch", "u")),
        ({**_HELLO, "watch": _events(state="EVIL")}, _RUN),
        ({**_HELLO, "watch": _events()}, _RUN),
        ({"hello": lambda request, context: pb.AppResponse(listeners=["-oProxyCommand=x:5"])}, _RUN),
    ],
)
def test_an_answer_that_no_gateway_gives(user: User, answers: Answers, command: tuple[str, ...]) -> None:
    released: list[str] = []

    def release(request: pb.Release, context: Any) -> pb.Response:
        released.append(request.uid)
        return pb.Response()

    answers = {"release": release, **answers}
    with hostile_gateway("aps", answers) as aps, hostile_gateway("alcf", answers) as alcf:
        _knows(user, aps, alcf)
        where = ("--prod-listeners", "127.0.0.1:9") if command == _REQUEST else ()
        process = user.s2uc("--quiet", "--timeout", "5s", *command, *where, expect=4)
    assert process.stdout == "" or command[0] == "watch"
    for line in process.stderr.splitlines():
        assert line.startswith("s2uc: gateway a")
        assert line.isprintable()
    assert len(set(released)) == (command == _REQUEST)
    assert user.records() == []


@pytest.mark.parametrize(
    ("answers", "command", "status"),
    [
        ({"list": refusing(grpc.StatusCode.INTERNAL, _EVIL)}, ("list",), 1),
        ({"list": _infos(uid=_EVIL, owner=_EVIL, backend=_EVIL, listeners=[_EVIL])}, ("list",), 0),
        ({"list": _infos(reason=_EVIL, labels={_EVIL: _EVIL}, targets=[_EVIL])}, ("status", "u"), 0),
        ({"list": _infos(), "watch": _events(state="RELEASED", message=_EVIL)}, ("watch", "u"), 0),
        ({"list": _infos(), "watch": _events(state="RELEASED", kind=77)}, ("watch", "u"), 0),
        ({"describe": lambda request, context: pb.GatewayDescription(user=_EVIL, version=_EVIL)}, ("check-auth",), 0),
        (
            {"hello": lambda request, context: pb.AppResponse(message=_EVIL)},
            ("hello", "u", "--role", "consumer", "--gateway", "aps"),
            0,
        ),
        ({"req": _resp(backend=_EVIL, csr=b"x")}, ("--verbose", *_REQUEST, "--prod-listeners", "127.0.0.1:9"), None),
    ],
)
def test_no_gateway_steers_the_terminal(
    user: User, answers: Answers, command: tuple[str, ...], status: int | None
) -> None:
    with hostile_gateway("aps", answers) as aps, hostile_gateway("alcf", answers) as alcf:
        _knows(user, aps, alcf)
        environment = {**os.environ, "SCISTREAM_CONFIG_DIR": str(user.config)}
        process = subprocess.run([*_S2UC, *command], capture_output=True, env=environment, check=False, timeout=60)
        assert status is None or process.returncode == status
        for text in (process.stdout.decode(), process.stderr.decode()):
            assert all(line.isprintable() for line in text.split("\n"))
            assert "\nsession released" not in text
        answer = subprocess.run(
            [*_S2UC, "--json", *command], stdout=subprocess.PIPE, env=environment, check=False, timeout=60
        )
        for line in answer.stdout.splitlines():
            assert isinstance(json.loads(line), dict)


# Servers that are none

_CA = DevelopmentCA.create("hostile")


def _tls(speak: Callable[[ssl.SSLSocket], None]) -> Callable[[socket.socket], None]:
    """Shake hands as a gateway does, and then do something else."""
    certificate, key = _CA.issue_server(["127.0.0.1"], in_an_hour())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(certificate.pem + key.pem)
        file.flush()
        context.load_cert_chain(file.name)
    context.set_alpn_protocols(["h2"])

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            speak(tls)

    return serve


def _say_nothing(connection: socket.socket) -> None:
    connection.recv(1 << 20)
    connection.recv(1 << 20)


_SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"


@pytest.mark.parametrize(
    "serve",
    [
        _say_nothing,
        lambda connection: connection.sendall(os.urandom(5000)),
        _tls(_say_nothing),
        _tls(lambda connection: connection.sendall(os.urandom(5000))),
        _tls(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")),
        _tls(lambda connection: (connection.sendall(_SETTINGS_FRAME), _say_nothing(connection))[1]),
    ],
    ids=["silent", "garbage", "silent-tls", "garbage-tls", "http", "silent-http2"],
)
def test_a_server_that_is_no_gateway(user: User, serve: Callable[[socket.socket], None]) -> None:
    with listener(serve) as endpoint:
        _knows(user, Gateway("aps", endpoint, _CA.certificate.pem, "token"))
        assert user.complaint("list", "--timeout", "1s", expect=4).startswith("s2uc: gateway aps (127.0.0.1:")


# Terminals and streams that are not there


def _shell(running: Facilities, script: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a script in which `s2uc` is a command."""
    text = f's2uc() {{ {sys.executable} -m s2uc "$@"; }}\n{script}'
    environment = {**os.environ, "SCISTREAM_CONFIG_DIR": str(running.user.config), **environ}
    return subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True, env=environment, timeout=60)  # noqa: PLW1510


def test_standard_streams_that_are_closed(running: Facilities, producer: Echo) -> None:
    command = f"s2uc {' '.join(_REQUEST)} --prod-listeners {producer.endpoint} --uid streams"
    for closed in ("2>&-", "<&-", ">&-", "<&- >&- 2>&-"):
        assert _shell(running, f"{command} {closed}").returncode == 0, closed
    assert _shell(running, "s2uc run --role consumer streams <&- >&- 2>&- -- sh -c 'exit 9'").returncode == 9
    assert _shell(running, "s2uc release streams >&-").returncode == 0


def test_output_that_nobody_takes(running: Facilities, producer: Echo) -> None:
    command = f"s2uc {' '.join(_REQUEST)} --prod-listeners {producer.endpoint} --uid streams"
    full = _shell(running, f"{command} > /dev/full")
    assert (full.returncode, full.stderr) == (1, "s2uc: the output cannot be written: No space left on device\n")
    for command in ("status streams", "--json list", "watch streams"):
        gone = _shell(running, f"(s2uc {command}; echo $? >&2) | true")
        assert gone.stderr == "1\n"
    assert _shell(running, "s2uc release nothing 2> /dev/full").returncode == 5
    running.user.s2uc("release", "streams")


def test_login_without_a_terminal(running: Facilities) -> None:
    assert "--token-file" in running.user.complaint("login", "aps", expect=2)


def test_no_home(running: Facilities) -> None:
    """A user whom the system does not know, as in containers of batch systems."""
    program = (
        "import os, pwd\n"
        "def nobody(*_): raise KeyError\n"
        "pwd.getpwuid = nobody\n"
        "for name in ('HOME', 'SCISTREAM_CONFIG_DIR'): os.environ.pop(name, None)\n"
        "import sys; sys.argv = ['s2uc', 'list']\n"
        "from s2uc.cli import main; main()\n"
    )
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert "SCISTREAM_CONFIG_DIR" in process.stderr
    assert process.stderr.count("\n") == 1


# Odd values


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--label", "k=\udcff"), "label"),
        (("--backend", "\udcff\x1b"), "backend"),
        (("--timeout", "99999999999d"), "longer than a year"),
    ],
)
def test_odd_values(running: Facilities, producer: Echo, arguments: tuple[str, ...], words: str) -> None:
    message = running.user.complaint(*_REQUEST, "--prod-listeners", str(producer.endpoint), *arguments, expect=2)
    assert words in message
    assert message.isprintable()


# Signals


@pytest.mark.parametrize(
    ("numbers", "status"),
    [((signal.SIGHUP,), 129), ((signal.SIGINT, signal.SIGINT), 130), ((signal.SIGTERM, signal.SIGTERM), 143)],
)
def test_a_terminal_that_goes_and_an_impatient_user(
    running: Facilities, numbers: tuple[signal.Signals, ...], status: int
) -> None:
    """What was begun is given back, also when the same signal comes again meanwhile."""
    process = running.user.start(*_REQUEST, "--verbose")
    assert process.stderr
    while "Hello" not in (line := process.stderr.readline()):
        assert line
    for number in numbers:
        process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert errors.count("undone") == 2
    assert process.returncode in (status, -numbers[0])  # the second may come when all is done
    assert running.left() == {}
    assert running.user.records() == []


def test_what_is_ignored_stays_ignored(running: Facilities, producer: Echo) -> None:
    """Under nohup neither `run` nor its application ends with the terminal."""
    running.user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "nohup")
    script = "sh -c 'kill -HUP $PPID; kill -HUP $$; sleep 0.2; exit 3'"
    run = f"{sys.executable} -m s2uc --quiet run --role consumer nohup -- {script}"
    assert _shell(running, f"trap '' HUP; exec {run}").returncode == 3
    # A shell that ignores the end of its children does not keep us from hearing of ours.
    assert _shell(running, f"trap '' CHLD; exec {run}").returncode in (3, 129)
    running.user.s2uc("release", "nohup")


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGQUIT])
def test_signals_of_batch_systems_reach_the_application(
    running: Facilities, producer: Echo, number: signal.Signals
) -> None:
    running.user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "batch")
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 5' {name}; echo ready; for i in $(seq 1000); do sleep 0.05; done"  # ends by itself at last
    process = running.user.start("--quiet", "run", "--role", "consumer", "batch", "--", "sh", "-c", script)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    try:
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == 5
    finally:
        process.kill()
        running.user.s2uc("release", "batch")


def test_placeholders_that_are_none(running: Facilities, producer: Echo) -> None:
    running.user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "place")
    word = "{listener" + "9" * 5000 + "}"
    run = ("--quiet", "run", "--role", "consumer", "place", "--", "echo")
    assert "too far" in running.user.s2uc(*run, "{listener999}", expect=2).stderr
    process = running.user.s2uc(*run, word)
    assert process.stdout == word + "\n"
    running.user.s2uc("release", "place")


def test_a_demonstration_that_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*_S2UC, "demo", "--seconds", "60"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    while "the consumer connects" not in (line := process.stdout.readline()):
        assert line
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 60
    while (left := left_of_demo(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []


# Files


def test_a_record_that_cannot_be_kept_loses_no_session(running: Facilities, producer: Echo, tmp_path: Path) -> None:
    """The consumer's half is open, and its user is told so, also when the disk is full by then."""
    running.user.s2uc(
        *("inbound-request", "--gateway", "aps", "--prod-listeners", str(producer.endpoint), "--uid", "half"),
        *("--ticket", str(tmp_path / "t")),
    )
    (running.user.config / "sessions" / "half.json").write_text("{}")
    process = running.user.s2uc("outbound-request", "--gateway", "alcf", "--ticket", str(tmp_path / "t"))
    assert "consumer  connects to" in process.stdout
    assert "half.json is not a session file" in process.stderr
    (running.user.config / "sessions" / "half.json").unlink()
    running.user.s2uc("release", "half")


def test_a_damaged_file_is_removed_by_the_command(user: User) -> None:
    user.s2uc("gateway", "add", "aps", "127.0.0.1:9", "--no-check")
    (user.config / "gateways" / "aps.json").write_text('{"name": "a')
    assert "remove it" in user.complaint("list", expect=2)
    user.s2uc("gateway", "remove", "aps")
    assert user.json("gateway", "list") == {"gateways": []}


def test_a_directory_that_has_become_read_only(running: Facilities, producer: Echo) -> None:
    """What is given back is given back, whatever can no longer be written down."""
    running.user.s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint), "--uid", "frozen")
    gateways = running.user.config / "gateways"
    program = (
        "import os, sys, pathlib\n"
        "def refuse(*_, **__): raise OSError(30, 'Read-only file system')\n"
        "pathlib.Path.unlink = refuse; import tempfile; tempfile.mkstemp = refuse\n"
        "sys.argv[0] = 's2uc'\n"
        "from s2uc.cli import main; main()\n"
    )

    def s2uc(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "SCISTREAM_CONFIG_DIR": str(running.user.config)}
        command = [sys.executable, "-c", program, *arguments]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    released = s2uc("release", "frozen")
    assert (released.returncode, released.stderr) == (0, "")
    assert running.left() == {}
    refused = s2uc(*_REQUEST, "--prod-listeners", str(producer.endpoint))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    removed = s2uc("gateway", "remove", "aps")
    assert removed.stderr == f"s2uc: {gateways / 'aps.json'} cannot be removed: Read-only file system\n"
    running.user.s2uc("release", "frozen", expect=0)


def test_an_address_that_another_program_has(running: Facilities, user: User) -> None:
    """A port where something else listens by now."""
    with listener(lambda connection: connection.close()) as endpoint:
        _knows(user, Gateway("aps", Endpoint("127.0.0.1", endpoint.port), running.aps.ca, "token"))
        assert "is it a SciStream gateway?" in user.complaint("list", "--timeout", "2s", expect=4)
