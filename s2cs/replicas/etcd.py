"""etcd, asked over its JSON gateway at whichever of its nodes answers.

All calls block, for no longer than a second or two: they are a few kilobytes to a server in the same LAN.
"""

from __future__ import annotations

import json
import ssl
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from s2cs.settings import StoreSettings
from scistream.errors import FailedPrecondition, ResourceExhausted, TryAgain, Unavailable
from scistream.vocabulary import Endpoint

try:
    import requests
    from etcd3gw import exceptions
    from etcd3gw.client import Etcd3Client
except ModuleNotFoundError:
    raise FailedPrecondition("a shared store needs the extra etcd; install it: pip install 'scistream[etcd]'") from None

_T = TypeVar("_T")
_NODE_S = 0.7  # for one node to answer; an election of etcd takes about as long
_CHUNK = 65536
_SILENCE_S = 4.0  # then a watch is begun anew, at another node
_STRANGE = "its answer is not etcd's"
_NOT_UNDERSTOOD = (ValueError, KeyError, TypeError, AttributeError)  # what comes of reading an answer of another kind
_NO_LEADER = ("no leader", "leader changed", "etcdserver: request timed out", "stopped", "too many requests")


@dataclass(frozen=True, slots=True)
class Entry:
    """A key's value, with the revisions of the store that made and last changed it."""

    value: bytes
    created: int
    changed: int


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written, or with no entry deleted, at a revision."""

    key: str
    entry: Entry | None
    revision: int


class Compacted(Exception):
    """What was to be watched from is forgotten."""


class Etcd:
    """Ask etcd. Not for several threads at once."""

    def __init__(self, settings: StoreSettings) -> None:
        """Make a client; nothing is asked yet.

        Raises:
            FailedPrecondition: a certificate or key cannot be used.
        """
        self._words = ", ".join(map(str, settings.etcd))
        self._tls = bool(settings.ca)
        _see_files(settings)
        self._clients = deque(_client(settings, node) for node in settings.etcd)
        self._watched: requests.Response | None = None

    def hush(self) -> None:
        """End a watch, from another thread."""
        if (watched := self._watched) is not None:
            with suppress(Exception):  # it ends by itself at this moment
                watched.raw.shutdown()

    def close(self) -> None:
        """Let go of the connections."""
        for client in self._clients:
            client.session.close()

    def ask(self, question: Callable[[Etcd3Client], _T]) -> _T:
        """Ask one node after the other, the one that answered last first.

        A question whose answer is lost is asked again at another node: it has to be one that can be.

        Raises:
            TryAgain: no node answers, or most of them are away.
            ResourceExhausted: etcd has no room.
            Unavailable: it does not let this client in, or does not understand.
        """
        why = ""
        for _ in range(len(self._clients)):
            try:
                return question(self._clients[0])
            except (exceptions.ConnectionFailedError, exceptions.ConnectionTimeoutError) as error:
                why = why or _short(error, self._tls)
            except exceptions.Etcd3Exception as error:
                details = _details(error)
                if "space exceeded" in details:
                    raise ResourceExhausted(
                        f"the shared store at {self._words} is full; its operator compacts it, or raises its quota"
                    ) from None
                if not any(words in details for words in _NO_LEADER):
                    raise Unavailable(
                        f"the shared store at {self._words} refuses: {details}; mend [store], or etcd"
                    ) from None
                why = details
            except requests.exceptions.JSONDecodeError:
                why = why or _STRANGE
            except requests.RequestException:
                why = why or "it hangs up in the midst of its answer"
            except _NOT_UNDERSTOOD:
                why = why or _STRANGE
            self._clients.rotate(-1)
        raise self._away(why)

    def _away(self, why: str) -> TryAgain:
        return TryAgain(f"the shared store at {self._words} cannot be used now ({why}); running streams go on")

    def load(self, prefix: str) -> tuple[dict[str, Entry], int]:
        """Read all keys that begin with a prefix, and the revision that they are of."""
        asked = {"key": _encode(prefix), "range_end": _encode(_after(prefix))}

        def read(client: Etcd3Client) -> tuple[dict[str, Entry], int]:
            answer = client.post(client.get_url("/kv/range"), json=asked)
            found = {_decode(kv["key"]).decode(): _entry(kv) for kv in answer.get("kvs", ())}
            return found, int(answer["header"]["revision"])

        return self.ask(read)

    def change(self, compare: Iterable[dict[str, Any]], writes: Iterable[dict[str, Any]]) -> int:
        """Write all at once if all that is compared is so; the revision, or 0 when it is not so."""
        txn = {"compare": list(compare), "success": list(writes), "failure": []}

        def write(client: Etcd3Client) -> int:
            answer: Any = client.transaction(txn)
            revision = int(answer["header"]["revision"])
            return revision if answer.get("succeeded") else 0

        return self.ask(write)

    def grant(self, ttl_s: int) -> int:
        """Get a lease; its id."""
        return self.ask(lambda client: int(client.lease(ttl_s).id))

    def refresh(self, lease: int) -> int:
        """Keep a lease; for how many seconds, or 0 when it has ended."""

        def keep(client: Etcd3Client) -> int:
            answer = client.post(client.get_url("/lease/keepalive"), json={"ID": lease})
            return int(answer["result"].get("TTL", 0))

        return self.ask(keep)

    def revoke(self, lease: int) -> None:
        """End a lease, and what is written under it."""
        self.ask(lambda client: client.post(client.get_url("/lease/revoke"), json={"ID": lease}))

    def watch(self, prefix: str, revision: int) -> Iterator[list[Change]]:
        """Give what changes from a revision on, and nothing now and then; ends when the node is silent.

        Raises:
            TryAgain: no node answers, or one does what etcd does not.
            Compacted: the revision is forgotten; load anew.
        """
        asked = {"key": _encode(prefix), "range_end": _encode(_after(prefix)), "start_revision": revision}
        with closing(self.ask(lambda client: _stream(client, {"create_request": asked}))) as stream:
            self._watched = stream
            try:
                for line in stream.iter_lines(_CHUNK):
                    found = json.loads(line).get("result", {}) if line.strip() else {}
                    if found.get("canceled"):
                        if "compact_revision" in found:
                            raise Compacted
                        return
                    yield [_change(event) for event in found.get("events", ())]
            except requests.RequestException:
                pass
            except _NOT_UNDERSTOOD:
                raise self._away(_STRANGE) from None
            finally:
                self._clients.rotate(-1)  # it may be this node that hears of nothing


def put(key: str, value: bytes, lease: int = 0) -> dict[str, Any]:
    """Write a key, as a part of a change."""
    return {"request_put": {"key": _encode(key), "value": b64encode(value).decode(), "lease": lease}}


def delete(key: str) -> dict[str, Any]:
    """Delete a key, as a part of a change."""
    return {"request_delete_range": {"key": _encode(key)}}


def made_at(key: str, revision: int) -> dict[str, Any]:
    """Compare when a key was made; 0: it is not there."""
    return {"key": _encode(key), "target": "CREATE", "result": "EQUAL", "create_revision": revision}


def changed_at(key: str, revision: int) -> dict[str, Any]:
    """Compare when a key was last changed; 0: it is not there."""
    return {"key": _encode(key), "target": "MOD", "result": "EQUAL", "mod_revision": revision}


def now() -> float:
    """Give the time that leases are kept by, in seconds: it goes on while this process, or the machine, sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _see_files(settings: StoreSettings) -> None:
    """See that what TLS needs is there; `requests` would say it later, and in other words."""
    files = {"ca": settings.ca, "certificate": settings.certificate, "key": settings.key}
    for name, path in files.items():
        try:
            if isinstance(path, Path):
                path.read_bytes()
        except OSError as error:
            raise FailedPrecondition(
                f"[store] {name} {path} cannot be read: {error.strerror}; mend its owner, or name another file"
            ) from None
    if not settings.ca:
        return
    try:
        context = ssl.create_default_context(cafile=settings.ca)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.key or None)
    except ssl.SSLError:
        what = ", ".join(f"{name} {path}" for name, path in files.items() if path)
        raise FailedPrecondition(
            f"[store] {what} cannot be used: they are no PEM files, or do not fit; name others"
        ) from None


def _client(settings: StoreSettings, node: Endpoint) -> Etcd3Client:
    session = requests.Session()
    session.trust_env = False  # no proxy stands between, and no netrc knows of it
    if settings.ca:
        session.verify = str(settings.ca)
    if settings.certificate:
        session.cert = (str(settings.certificate), str(settings.key))
    protocol = "https" if settings.ca else "http"
    return Etcd3Client(node.host, node.port, protocol, timeout=_NODE_S, api_path="/v3/", session=session)


def _stream(client: Etcd3Client, body: dict[str, Any]) -> requests.Response:
    try:
        timeouts = (_NODE_S, _SILENCE_S)
        response = client.session.post(client.get_url("/watch"), json=body, stream=True, timeout=timeouts)
    except requests.exceptions.RequestException as error:
        raise exceptions.ConnectionFailedError(str(error)) from None
    if response.status_code != requests.codes["ok"]:
        with closing(response):
            raise exceptions.Etcd3Exception(response.text)
    return response


def _change(event: dict[str, Any]) -> Change:
    kv = event["kv"]
    gone = event.get("type") == "DELETE"
    return Change(_decode(kv["key"]).decode(), None if gone else _entry(kv), int(kv["mod_revision"]))


def _entry(kv: dict[str, Any]) -> Entry:
    return Entry(_decode(kv.get("value", "")), int(kv["create_revision"]), int(kv["mod_revision"]))


def _encode(text: str) -> str:
    return b64encode(text.encode()).decode()


def _decode(text: str) -> bytes:
    return b64decode(text)


def _after(prefix: str) -> str:
    """Give the first key that is after all with a prefix, which ends with a slash."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


def _details(error: exceptions.Etcd3Exception) -> str:
    try:
        return str(json.loads(error.detail_text or "")["error"])
    except (ValueError, KeyError, TypeError):
        return (error.detail_text or str(error)).strip() or type(error).__name__


def _short(error: exceptions.Etcd3Exception, tls: bool) -> str:
    words = error.detail_text or ""
    hung_up = f"it hangs up; {'see [store] certificate' if tls else 'perhaps it wants TLS, see [store] ca'}"
    for sign, short in (
        ("not valid for", "its certificate is for another address"),
        ("CERTIFICATE_VERIFY_FAILED", "its certificate is not from [store] ca"),
        ("EOF occurred", "it hangs up during the TLS handshake; see [store] certificate"),
        ("RemoteDisconnected", hung_up),
        ("reset by peer", hung_up),
        ("refused", "connection refused"),
        ("timed out", "no answer in time"),
        ("No route", "no route to it"),
        ("unreachable", "its network is unreachable"),
        ("alert", "TLS refused; see [store] certificate"),
        ("resolve", "its name is not known"),
    ):
        if sign in words:
            return short
    return "the connection is lost"
