"""The proxies: one module and one template each, listed here in the order in which `auto` prefers them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from s2cs.s2ds.backends.base import Backend
from s2cs.s2ds.backends.haproxy import HAProxy
from s2cs.s2ds.backends.nginx import Nginx
from s2cs.s2ds.backends.stunnel import Stunnel

BACKENDS: Mapping[str, Backend] = MappingProxyType({b.name: b for b in (Nginx(), HAProxy(), Stunnel())})
"""Each backend by its name, the preferred one first."""
