"""What pods of sessions are to be, what the cluster says of them, and the manifests that are shipped."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from s2cs.data_server import shape
from s2cs.node_settings import NodeSettings, load_node
from s2cs.s2ds.contract import TunnelSpec
from s2cs.s2ds.kubernetes import manifest, reading
from s2cs.s2ds.kubernetes.trying import RIGHTS
from s2cs.settings import Settings
from s2cs.settings_file import SettingsError, load
from scistream.errors import FailedPrecondition, ScistreamError, Unavailable
from scistream.vocabulary import Rate, Role, Uid

BASE = Path(__file__).parents[2] / "deploy/kubernetes/base"
SPEC = TunnelSpec("a1", Uid("scan-7"), Role.PROD, 4, rate=Rate.parse("10Gb/s"))


_NODE = {"name": "n1", "address": "10.1.0.6:5010", "certificate": "n1.crt", "lan": "10.1.0.6", "wan": "203.0.113.6"}


def settings(**kubernetes: Any) -> Settings:
    return Settings.model_validate({"network": {"ports": "20000-20099"}, "kubernetes": {"enabled": True} | kubernetes})


def objects(name: str) -> list[Any]:
    return list(yaml.safe_load_all((BASE / name).read_text()))


def test_a_session_requests_what_its_rate_needs() -> None:
    assert shape(settings()).resources(SPEC) == {"requests": {"cpu": "1550m", "memory": "130Mi"}}
    chosen = shape(settings(rate_resource="scistream.org/mbps", cpu_per_gbit=0))
    assert chosen.resources(SPEC) == {
        "requests": {"cpu": "50m", "memory": "130Mi", "scistream.org/mbps": "10000"},
        "limits": {"scistream.org/mbps": "10000"},
    }
    without = TunnelSpec("a1", Uid("scan-7"), Role.PROD, 4)
    assert "limits" not in chosen.resources(without)


def test_a_pod_keeps_to_the_profile_restricted_but_for_its_network() -> None:
    pod = manifest.pod(shape(settings()), SPEC, "s2ds-1", 29001, "PEM")
    inside, container = pod["spec"], pod["spec"]["containers"][0]
    assert inside["hostNetwork"]
    assert inside["securityContext"]["runAsNonRoot"]
    assert not inside["automountServiceAccountToken"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert all({"secret", "emptyDir"} & volume.keys() for volume in inside["volumes"])
    owner = {"metadata": pod["metadata"] | {"uid": "u"}}
    made = manifest.secret(owner, {"node.toml": ""})
    assert made["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "s2ds-1", "uid": "u"}]


def test_pods_go_to_the_nodes_that_are_named_with_their_addresses() -> None:
    nodes = [{"name": "gw1", "lan": "10.1.0.6", "wan": "203.0.113.6"}, {"name": "gw2", "lan": "fd00::6", "wan": "::2"}]
    chosen = shape(settings(nodes=nodes, tolerations=[{"key": "gateway", "operator": "Exists"}]))
    inside = manifest.pod(chosen, SPEC, "s2ds-1", 29001, "PEM")["spec"]
    terms = inside["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [term["matchFields"][0]["values"] for term in terms] == [["gw1"], ["gw2"]]
    assert {"key": "gateway", "operator": "Exists"} in inside["tolerations"]
    files = chosen.bundles("s2ds-1", 29001, "C", "K", "G")
    read = {name: NodeSettings.model_validate(tomllib.loads(text)) for name, text in files.items()}
    assert {name: str(each.server.listen[0]) for name, each in read.items()} == {
        "gw1.toml": "10.1.0.6:29001",
        "gw2.toml": "[fd00::6]:29001",
    }
    assert read["gw1.toml"].network.wan == "203.0.113.6"


def test_without_names_the_pod_itself_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = shape(settings())
    files = chosen.bundles("s2ds-1", 29001, 'a "quoted"\nPEM', "K", "G")
    assert list(files) == ["node.toml"]
    file = tmp_path / "node.toml"
    file.write_text(files["node.toml"])
    file.chmod(0o600)
    environment = manifest.pod(chosen, SPEC, "s2ds-1", 29001, "PEM")["spec"]["containers"][0]["env"]
    for each in environment:
        if "value" in each:
            monkeypatch.setenv(each["name"], each["value"].replace("$(HOST_IP)", "10.1.0.9"))
    found = load_node(file)
    assert (str(found.server.listen[0]), found.network.lan, found.network.wan) == ("10.1.0.9:29001",) + (
        "10.1.0.9",
    ) * 2
    assert found.server.certificate == 'a "quoted"\nPEM'
    file.chmod(0o640)
    with pytest.raises(FailedPrecondition, match="can be read by others"):
        load_node(file)


def pod(**status: Any) -> Any:
    return {
        "metadata": {"name": "s2ds-1"},
        "spec": {"nodeName": "gw1", "containers": [{"image": "scistream:1"}]},
        "status": status,
    }


def state(where: str = "state", **of: Any) -> Any:
    return pod(hostIP="10.1.0.6", containerStatuses=[{where: of}])


@pytest.mark.parametrize(
    ("found", "kind", "said"),
    [
        (
            state(waiting={"reason": "ErrImagePull", "message": "no"}),
            FailedPrecondition,
            "scistream:1 cannot be had",
        ),
        (state(waiting={"reason": "CreateContainerError"}), FailedPrecondition, "cannot be started"),
        (state(terminated={"exitCode": 1, "message": "x\nlast\n"}), Unavailable, "ended with status 1: last"),
        (
            state("lastState", terminated={"exitCode": 4, "message": "cannot listen: the port is taken, or"}),
            reading.PortTaken,
            "status 4",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="low on\x1b memory"),
            Unavailable,
            r"has ended: low on\x1b memory",
        ),
    ],
)
def test_why_a_pod_does_not_run(found: Any, kind: type[ScistreamError], said: str) -> None:
    fault = reading.fault(found)
    assert type(fault) is kind
    assert said in str(fault)


def test_a_control_port_that_other_pods_have_is_told_from_want_of_room() -> None:
    found = pod(conditions=[{"type": "PodScheduled", "reason": "Unschedulable", "message": "1 had no free ports"}])
    found["spec"].pop("nodeName")
    assert reading.port_taken(found)
    found["status"]["conditions"][0]["message"] = "1 Insufficient cpu"
    assert not reading.port_taken(found)
    assert "1 Insufficient cpu" in str(reading.no_room(reading.unplaced(found)))


def test_a_pod_that_may_yet_run_has_no_fault() -> None:
    assert reading.fault(pod()) is None
    assert reading.fault(state(waiting={"reason": "ContainerCreating"})) is None
    assert not reading.runs(state(waiting={}))
    assert reading.runs(state(running={}))
    assert (reading.tunnel(pod()), reading.port(pod()), reading.node({"spec": {}})) == ("", 0, "")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"network": {"ports": "29500-30500"}}, "control_ports 29000-29999 overlap"),
        ({"network": {"wan_port": 443}}, "wan_port is for sessions of this host"),
        ({"kubernetes": {"api": "http://10.0.0.1"}}, "api"),
        (
            {
                "store": {"etcd": ["10.1.0.1:2379"], "listen": "10.1.0.5:5002"},
                "s2ds": {"local": False, "nodes": [_NODE]},
                "server": {"on_shutdown": "keep"},
            },
            "is for one S2CS",
        ),
        ({"kubernetes": {"nodes": [{"name": "a", "lan": "10.1.0.1", "wan": "10.1.0.1"}] * 2}}, "named twice: a"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path: Path, tables: dict[str, Any], said: str) -> None:
    file = tmp_path / "s2cs.toml"
    file.write_text("[kubernetes]\n")
    enabled = {"kubernetes": {"enabled": True} | tables.get("kubernetes", {})}
    with pytest.raises(ValueError, match=said):
        Settings.model_validate(tables | enabled)
    file.write_text("[kubernetes]\nnamspace = 'x'\n")
    with pytest.raises(SettingsError, match=r"\[kubernetes\] namspace: unknown key"):
        load(file)


def test_the_manifests_ask_for_the_rights_that_are_used() -> None:
    account, role, binding = objects("access.yaml")
    assert {kind: tuple(rule["verbs"]) for rule in role["rules"] for kind in rule["resources"]} == RIGHTS
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]


def test_the_manifests_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SCISTREAM_KUBERNETES__ENABLED", raising=False)
    chosen = load(BASE / "s2cs.toml")
    assert chosen.kubernetes.enabled
    (kustomization,) = objects("kustomization.yaml")
    assert kustomization["namespace"] == chosen.kubernetes.namespace
    assert {*kustomization["resources"], "kustomization.yaml", "s2cs.toml"} == {path.name for path in BASE.iterdir()}
    claim, deployment, service = objects("gateway.yaml")
    template = deployment["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert container["image"] == chosen.s2ds.image
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) == (1, "Recreate")
    assert service["spec"]["selector"] == template["metadata"]["labels"]
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["state"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert chosen.server.state_dir.is_relative_to(mounts["state"])
    assert chosen.server.certificate.is_relative_to(mounts["tls"])
    assert container["args"][-1] == f"{mounts['settings']}/s2cs.toml"
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert (ports["control"], ports["metrics"]) == (chosen.server.listen[0].port, chosen.metrics.listen[0].port)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert template["spec"]["securityContext"]["runAsNonRoot"]
