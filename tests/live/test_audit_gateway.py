"""The audit log of real gateways: who did what is there, secrets are not, and a broken log takes no new sessions."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from s2cs.audit.verify import verify
from scistream.proto import scistream_pb2 as pb
from scistream.wire import grpc
from tests.support import programs
from tests.support.gateways import GatewayProcess, gateway
from tests.support.sessions import echo, exchange, open_pair


def s2cs(running: GatewayProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return programs.run("s2cs", *words, "--config", running.config)


def shown(running: GatewayProcess, *options: str) -> list[dict[str, Any]]:
    run = s2cs(running, "audit", "show", "--json", *options)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_sessions_life_is_in_the_log_of_both_gateways_and_no_secret_is(tmp_path: Path) -> None:
    with gateway(tmp_path / "p") as producer, gateway(tmp_path / "c") as consumer, echo() as app:
        alice = producer.add_user("alice")
        carol = consumer.add_user("carol", "--operator")
        with producer.client(alice) as at_p, consumer.client(carol) as at_c:
            opened = open_pair(at_p, at_c, [str(app.endpoint)], 2)
            with opened.connect() as connection:
                exchange(connection, b"x" * 1000)
            for _ in range(15):
                with pytest.raises(grpc.RpcError):
                    at_p.list(pb.ListRequest(), token="s2t_a-guess")  # type: ignore[operator]
            with pytest.raises(grpc.RpcError):
                at_p.req(pb.Request(uid="bad", role="PROD", num_conn=999, immediate=True))  # type: ignore[operator]
            with pytest.raises(grpc.RpcError):
                at_p.release(pb.Release(uid=alice))  # type: ignore[operator]
            opened.release()
        s2cs(producer, "user", "remove", "alice")
        with producer.client(alice) as at_p, pytest.raises(grpc.RpcError):
            at_p.describe(pb.DescribeRequest())  # type: ignore[operator]
        producer.stop()

        life = shown(producer, "--uid", opened.uid)
        events = [line["event"] for line in life]
        assert events == ["call.req", "call.hello", "session.active", "call.update", "session.end", "call.release"]
        assert {line["owner"] for line in life} == {"alice"}
        assert {line["peer"].rpartition(":")[0] for line in life if "peer" in line} == {"127.0.0.1"}
        asked, hello, _, update, end, _ = life
        facts = ("decision", "user", "auth", "role", "num_conn", "lease_s", "backend")
        assert [asked[name] for name in facts][:-1] == ["allowed", "alice", "token", "PROD", 2, 3600]
        assert asked["backend"]
        assert len(asked["listeners"]) == 2
        assert hello["targets"] == update["targets"] == [str(app.endpoint)]
        assert (end["outcome"], end["reason"]) == ("RELEASED", "released by its user")
        moved = {"bytes_from_producer": 1000, "bytes_from_consumer": 1000, "connections": 1}
        assert moved.items() <= end.items()
        (end_at_consumer,) = shown(consumer, "--uid", opened.uid, "--event", "session.end")
        assert moved.items() <= end_at_consumer.items()
        (at_consumer,) = shown(consumer, "--uid", opened.uid, "--event", "call.update")
        assert at_consumer["peers"] == [str(each) for each in opened.wan]

        refused = shown(producer, "--event", "refused")
        logins = [line for line in refused if line["event"] == "login"]
        assert len([line for line in logins if line.get("method") == "list"]) == 10
        assert [(line["of"], line["count"]) for line in shown(producer, "--event", "refusals")] == [("login", 6)]
        assert [line["status"] for line in refused if line["event"] == "call.req"] == ["RESOURCE_EXHAUSTED"]
        assert [(x["user"], x["decision"]) for x in shown(producer, "--user", "alice", "--event", "login")] == [
            ("alice", "allowed")
        ]
        acts = shown(producer, "--event", "admin")
        assert [(line["event"], line["arguments"]["name"]) for line in acts] == [
            ("admin.user.add", "alice"),
            ("admin.user.remove", "alice"),
        ]
        assert s2cs(producer, "audit", "show", "--user", "nobody").stderr == "no such records\n"
        whole = shown(producer)
        assert [whole[0]["event"], whole[-1]["event"]] == ["gateway.start", "gateway.stop"]
        assert not shown(producer, "--since", "2100-01-01")
        text = "".join(path.read_text() for path in (producer.directory / "state" / "audit").glob("*.jsonl"))
        for secret in (alice, producer.token, "s2t_a-guess", "PRIVATE"):
            assert secret not in text

        for running in (producer, consumer):
            assert "FAULT" not in s2cs(running, "audit", "verify").stdout
        kept = s2cs(producer, "audit", "head").stdout.strip()
        assert s2cs(producer, "audit", "verify", "--head", kept).returncode == 0
        (file,) = (producer.directory / "state" / "audit").glob("*.jsonl")
        file.write_text(text.replace('"user":"alice"', '"user":"mallory"', 1))
        run = s2cs(producer, "audit", "verify")
        assert run.returncode == 1
        assert "it is not as it was written" in run.stdout


def test_no_session_begins_unrecorded_and_the_log_goes_on_when_it_can(tmp_path: Path) -> None:
    with gateway(tmp_path / "g") as running, running.client() as client:
        directory = running.directory / "state" / "audit"
        directory.rename(running.directory / "away")
        directory.write_text("in the way")
        with pytest.raises(grpc.RpcError):
            client.release(pb.Release(uid="none"))  # type: ignore[operator]
        request = pb.Request(uid="u", role="PROD", num_conn=1, immediate=True)
        for _ in range(100):
            try:
                client.req(request)  # type: ignore[operator]
            except grpc.RpcError as error:
                assert "takes no new sessions: its audit log cannot be written" in error.details()  # type: ignore[attr-defined]
                break
            client.release(pb.Release(uid="u"))  # type: ignore[operator]
        else:
            pytest.fail("sessions go on to be opened")
        assert "the audit log in" in running.log
        assert f"FAULT audit log {directory} cannot be written" in s2cs(running, "check").stdout
        directory.unlink()
        (running.directory / "away").rename(directory)
        for _ in range(100):
            try:
                client.req(request)  # type: ignore[operator]
                break
            except grpc.RpcError:
                client.list(pb.ListRequest())  # type: ignore[operator]
        else:
            pytest.fail("no session can be opened again")
        running.stop(9)
        report = verify(directory)
        assert report.fault == ""
        assert shown(running, "--event", "log.resumed")
