"""The proxies: one module and one template each, listed here in the order in which `auto` prefers them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from s2cs.s2ds.backends.base import Backend
from s2cs.s2ds.backends.nginx import Nginx

BACKENDS: Mapping[str, Backend] = MappingProxyType({b.name: b for b in (Nginx(),)})
"""Each backend by its name, the preferred one first."""
