"""Try out a cluster without changing anything in it: what this account may, and whether a session's pod is taken."""

from __future__ import annotations

import asyncio

from s2cs.s2ds.contract import TunnelSpec
from s2cs.s2ds.kubernetes import manifest
from s2cs.s2ds.kubernetes.api import Api
from s2cs.s2ds.kubernetes.shape import Shape
from scistream.errors import ScistreamError
from scistream.vocabulary import PortRange, Rate, Role, Uid

RIGHTS = {"pods": ("create", "delete", "list", "watch"), "secrets": ("create",)}
_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_NODE_PORTS = PortRange(30000, 32767)  # unless the cluster was told otherwise


async def may(api: Api, verb: str, resource: str) -> bool:
    """Ask whether this account may do something in its namespace."""
    attributes = {"namespace": api.namespace, "verb": verb, "resource": resource}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
    answer = await api.ask("POST", _REVIEWS, {**review, "spec": {"resourceAttributes": attributes}})
    return bool(answer["status"]["allowed"])


async def try_out(api: Api, shape: Shape) -> list[tuple[str, str]]:
    """Say what was found, each as `ok`, `warn` or `bad`, and a sentence."""
    found = []
    try:
        api.open()
        rights = [(verb, resource) for resource, verbs in RIGHTS.items() for verb in verbs]
        answers = await asyncio.gather(*(may(api, *right) for right in rights))
        if not all(answers):
            lacking = (" ".join(right) for right, allowed in zip(rights, answers, strict=True) if not allowed)
            mend = "apply deploy/kubernetes/base/access.yaml"
            found.append(("bad", f"S2CS may not {', '.join(lacking)} in namespace {api.namespace}; {mend}"))
        else:
            spec = TunnelSpec("check", Uid("check"), Role.PROD, 1, rate=Rate(125_000_000))
            pod = manifest.pod(shape, spec, "s2ds-check", shape.control_ports.first, "")
            await api.ask("POST", "pods", pod, dryRun="All")
            found.append(("ok", f"the cluster takes pods of sessions in namespace {api.namespace}"))
    except ScistreamError as error:
        found.append(("bad", str(error)))
    finally:
        await api.close()
    for what, ports in (("[network] ports", shape.ports), ("[kubernetes] control_ports", shape.control_ports)):
        if ports.first <= _NODE_PORTS.last and _NODE_PORTS.first <= ports.last:
            text = (
                f"{what} {ports} overlap a cluster's usual NodePorts {_NODE_PORTS}, which may catch connections to them"
            )
            found.append(("warn", text))
    return found
