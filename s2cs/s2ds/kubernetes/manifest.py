"""The objects of a session in the cluster: a pod, and a Secret that ends with it."""

from __future__ import annotations

from typing import Any

from s2cs.s2ds.contract import TunnelSpec
from s2cs.s2ds.kubernetes.shape import Shape

GATEWAY = "scistream.org/gateway"  # label: whose a pod is
ROLE = "scistream.org/role"  # label
TUNNEL, SESSION = "scistream.org/tunnel", "scistream.org/session"  # annotations: whom it serves
CERTIFICATE, PORT = "scistream.org/certificate", "scistream.org/control-port"  # annotations: how it is reached
CONTAINER = "s2ds"
_USER = 10001  # the image's
_END_S = 10  # from TERM to KILL; nothing waits for streams then
_FOR_EVER = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def selector(shape: Shape) -> str:
    """Select all pods of a gateway."""
    return f"{GATEWAY}={shape.gateway}"


def pod(shape: Shape, spec: TunnelSpec, name: str, port: int, certificate: str) -> dict[str, Any]:
    """Describe a session's pod.

    It is on the network of its node: a Service would put a hop, address translation and connection tracking into the
    data's path, and these listeners are to be bound sockets.
    """
    environment = [
        {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
    ]
    if not shape.places:
        environment += [
            {"name": "SCISTREAM_SERVER__LISTEN", "value": f'["$(HOST_IP):{port}"]'},
            {"name": "SCISTREAM_NETWORK__LAN", "value": "$(HOST_IP)"},
            {"name": "SCISTREAM_NETWORK__WAN", "value": "$(HOST_IP)"},
        ]
    settings = "/etc/scistream/$(NODE_NAME).toml" if shape.places else "/etc/scistream/node.toml"
    container = {
        "name": CONTAINER,
        "image": shape.image,
        "args": ["s2ds", "--config", settings],
        "env": environment,
        "ports": [{"name": "control", "containerPort": port, "hostPort": port}],  # one of this number on a node
        "resources": shape.resources(spec),
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "settings", "mountPath": "/etc/scistream", "readOnly": True},
            {"name": "run", "mountPath": "/run/scistream"},
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        ],
    }
    inside: dict[str, Any] = {
        "hostNetwork": True,
        "dnsPolicy": "Default",
        "restartPolicy": "Always",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": _END_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(shape.node_selector),
        # Streams go on while the cluster does not hear of their node: nothing is to end them for that.
        "tolerations": [
            *map(dict, shape.tolerations),
            *({"key": key, "operator": "Exists", "effect": "NoExecute"} for key in _FOR_EVER),
        ],
        "affinity": _affinity(shape),
        "containers": [container],
        "volumes": [
            {"name": "settings", "secret": {"secretName": name, "defaultMode": 0o440}},
            {"name": "run", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
            {"name": "tmp", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
        ],
    }
    if shape.priority_class:
        inside["priorityClassName"] = shape.priority_class
    annotations = {TUNNEL: spec.id, SESSION: spec.uid, CERTIFICATE: certificate, PORT: str(port)}
    labels = {"app.kubernetes.io/name": "scistream-s2ds", GATEWAY: shape.gateway, ROLE: str(spec.role)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels, "annotations": annotations},
        "spec": inside,
    }


def secret(owner: dict[str, Any], files: dict[str, str]) -> dict[str, Any]:
    """Describe what a pod's data server needs to start; the cluster removes it with the pod."""
    meta = owner["metadata"]
    reference = {"apiVersion": "v1", "kind": "Pod", "name": meta["name"], "uid": meta["uid"]}
    labels = {key: value for key, value in meta["labels"].items() if key != ROLE}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": meta["name"], "labels": labels, "ownerReferences": [reference]},
        "type": "Opaque",
        "stringData": files,
        "immutable": True,
    }


def _affinity(shape: Shape) -> dict[str, Any]:
    """Keep to the nodes that are named, and away from those that have sessions already, where there is a choice."""
    apart = {
        "weight": 100,
        "podAffinityTerm": {
            "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "scistream-s2ds"}},
            "topologyKey": "kubernetes.io/hostname",
        },
    }
    affinity: dict[str, Any] = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [apart]}}
    if shape.places:
        terms = [
            {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [place.node]}]}
            for place in shape.places
        ]
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return affinity
