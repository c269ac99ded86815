"""What the cluster says of a pod, in our words: where it is, and why it does not run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2cs.s2ds.kubernetes.manifest import CERTIFICATE, PORT, TUNNEL
from scistream.errors import FailedPrecondition, ResourceExhausted, ScistreamError, Unavailable
from scistream.vocabulary import printable

Pod = Mapping[str, Any]

_NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_NO_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_PORT_TAKEN = "the port is taken"
_WORDS = 300


class PortTaken(Unavailable):
    """Another program of the node has the pod's control port."""


def name(pod: Pod) -> str:
    """Name a pod."""
    return str(pod["metadata"]["name"])


def node(pod: Pod) -> str:
    """Name the node that a pod is on; empty while it is on none."""
    return str(pod["spec"].get("nodeName") or "")


def host(pod: Pod) -> str:
    """Give the address of a pod's node; empty while it is not known."""
    return str(pod.get("status", {}).get("hostIP") or "")


def tunnel(pod: Pod) -> str:
    """Name the tunnel that a pod is for; empty if it does not say."""
    return str(_annotations(pod).get(TUNNEL, ""))


def certificate(pod: Pod) -> bytes:
    """Give the certificate that a pod is known by, in PEM."""
    return str(_annotations(pod).get(CERTIFICATE, "")).encode()


def port(pod: Pod) -> int:
    """Say on which port of its node a pod is reached; 0 if it does not say."""
    text = str(_annotations(pod).get(PORT, ""))
    return int(text) if text.isdecimal() and len(text) < 6 else 0


def leaves(pod: Pod) -> bool:
    """Tell whether a pod is being deleted."""
    return bool(pod["metadata"].get("deletionTimestamp"))


def over(pod: Pod) -> str:
    """Say why a pod never runs again; empty if it may."""
    status = pod.get("status", {})
    if status.get("phase") not in ("Failed", "Succeeded"):
        return ""
    said = _short(status.get("message") or status.get("reason") or "the cluster ended it")
    return f"its pod {name(pod)} has ended: {said}"


def runs(pod: Pod) -> bool:
    """Tell whether a pod's container runs, on a node whose address is known."""
    return bool(host(pod)) and "running" in _container(pod).get("state", {})


def unplaced(pod: Pod) -> str:
    """Say why the scheduler finds no node; empty if it has, or has not looked yet."""
    for condition in pod.get("status", {}).get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return _short(condition.get("message", ""))
    return ""


def port_taken(pod: Pod) -> bool:
    """Tell whether the scheduler finds no node because other pods have this one's control port there."""
    return not node(pod) and "free ports" in unplaced(pod)


def fault(pod: Pod) -> ScistreamError | None:
    """Say why a pod on a node will not run as it is; None if it may yet."""
    if ended := over(pod):
        return Unavailable(ended)
    where = f"pod {name(pod)} on node {node(pod)}"
    container = _container(pod)
    waiting = container.get("state", {}).get("waiting", {})
    reason, said = waiting.get("reason", ""), _short(waiting.get("message", ""))
    image = pod["spec"]["containers"][0]["image"]
    if reason in _NO_IMAGE:
        return FailedPrecondition(
            f"image {image} cannot be had on node {node(pod)} ({reason}: {said}); "
            "bring it there, or correct [s2ds] image"
        )
    if reason in _NO_CONTAINER:
        return FailedPrecondition(f"{where} cannot be started ({reason}: {said}); mend that, or [kubernetes]")
    for state in ("state", "lastState"):
        if ended_as := container.get(state, {}).get("terminated"):
            text = _short(ended_as.get("message", "").strip().rpartition("\n")[2])
            words = f"the data server in {where} ended with status {ended_as.get('exitCode')}: {text}"
            return PortTaken(words) if _PORT_TAKEN in ended_as.get("message", "") else Unavailable(words)
    return None


def no_room(why: str) -> ResourceExhausted:
    """Say that the scheduler finds no node."""
    return ResourceExhausted(f"no node of the cluster can take the session: {why}")


def _annotations(pod: Pod) -> Mapping[str, Any]:
    found: Mapping[str, Any] = pod["metadata"].get("annotations") or {}
    return found


def _container(pod: Pod) -> Mapping[str, Any]:
    found: list[Mapping[str, Any]] = pod.get("status", {}).get("containerStatuses") or [{}]
    return found[0]


def _short(text: str) -> str:
    return printable(" ".join(str(text).split()))[:_WORDS]
