"""Which way of `[auth]` a caller's credentials belong to, and who it is by that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from s2cs.auth import TOKEN_PREFIX, WITHOUT_TOKEN, Caller, KeptOut, KeyHolder, bearer, digest, is_bare
from s2cs.background import Background
from s2cs.compat import Compat
from s2cs.identity.certificates import CertificateMethod
from s2cs.identity.introspection import OpaqueMethod
from s2cs.identity.oidc import JwtMethod, issuer_of
from s2cs.identity.settings import Auth
from s2cs.store import Store
from s2cs.users import Rank, User
from scistream.errors import NotFound, ScistreamError, Unauthenticated, Unavailable
from scistream.vocabulary import shown

log = logging.getLogger(__name__)

_NONE = Compat()
_NOTE_S = 60.0  # between two writings of who was here
_GRACE_S = 30.0  # for tokens that are being checked when the ways of checking change


class Methods:
    """The ways of some settings, ready to be used.

    Raises:
        FailedPrecondition: a secret, a CA or a list of revoked certificates cannot be used.
    """

    def __init__(self, auth: Auth, compat: Compat = _NONE) -> None:
        self.auth = auth
        self.compat = compat
        self.certificates = CertificateMethod(auth.certificates)
        self.jwt = {settings.issuer: JwtMethod(settings) for settings in auth.oidc}
        self.opaque = [OpaqueMethod(settings) for settings in auth.introspection]

    def take_over(self, before: Methods) -> None:
        """Know the issuers' keys that others knew."""
        for issuer, method in self.jwt.items():
            if issuer in before.jwt:
                method.keys.take_over(before.jwt[issuer].keys)

    async def try_out(self) -> list[tuple[bool, str]]:
        """Ask each issuer: whether it can be asked, and what is to be said of it."""
        found = []
        methods: list[JwtMethod | OpaqueMethod] = [*self.jwt.values(), *self.opaque]
        for method in methods:
            try:
                found.append((True, await method.try_out()))
            except Unavailable as error:
                found.append((False, f"{method.settings.name} of [auth] cannot be used now: {error}"))
        return found

    async def close(self) -> None:
        """Let go of the issuers."""
        for jwt in self.jwt.values():
            await jwt.close()
        for opaque in self.opaque:
            await opaque.close()

    def of(self, token: str) -> JwtMethod | OpaqueMethod | None:
        """Choose the way of a token that is not this gateway's; None when it can be nobody's.

        Raises:
            Unauthenticated: it is of an issuer that is not accepted.
        """
        issuer = issuer_of(token)
        if issuer in self.jwt:
            return self.jwt[issuer]
        if issuer is not None:
            for method in self.opaque:
                if issuer and method.settings.issuer == issuer:
                    return method
            raise Unauthenticated(f"tokens of {shown(issuer)} are not accepted here; s2uc login takes one that is")
        fitting = [method for method in self.opaque if token.startswith(method.settings.prefix)]
        return max(fitting, key=lambda method: len(method.settings.prefix), default=None)


class Authenticator:
    """Tell who calls.

    Args:
        methods: the ways of `[auth]`.
        store: this gateway's own users; outsiders are noted there, too.
        opens_session: tells whether a credential with this SHA-256 is the key of a session that there is.
    """

    def __init__(self, methods: Methods, store: Store, opens_session: Callable[[bytes], bool]) -> None:
        self._methods = methods
        self._store = store
        self._opens_session = opens_session
        self._used: dict[str, float] = {}  # ids of tokens and users, and when
        self._noting: asyncio.Task[None] | None = None
        self._ending = Background()  # ways that were in use before

    async def open(self) -> None:
        """Begin to note who was here."""
        self._noting = asyncio.create_task(self._note_now_and_then())

    async def close(self) -> None:
        """Stop."""
        if self._noting is not None:
            self._noting.cancel()
        self._note()
        self._ending.cancel()
        await asyncio.gather(self._ending.ended(), self._methods.close(), return_exceptions=True)

    def adopt(self, methods: Methods) -> None:
        """Use other ways from now on; tokens that are being checked by those before are checked to the end."""
        methods.take_over(self._methods)
        self._ending.begin(_close_later(self._methods))
        self._methods = methods

    async def identify(
        self, authorization: str, certificate: bytes = b"", tokenless: bool = False
    ) -> Caller | KeyHolder:
        """Find out who calls.

        Args:
            authorization: the metadata of that name: `Bearer TOKEN`, or the bare token.
            certificate: that of the connection in PEM, checked by TLS; empty where there is none.
            tokenless: whether old clients without any are served here, if the operator named who they are.

        Raises:
            Unauthenticated: there are no credentials, or they are not good.
            PermissionDenied: they are good, but not for this, or their owner is disabled.
            Unavailable: they cannot be checked now.
        """
        token = bearer(authorization)
        compat = self._methods.compat
        if not token:
            if certificate:
                return self._outsider(self._methods.certificates.identify(certificate))
            if tokenless and compat.user:
                return self._without_token(compat.user)
            raise Unauthenticated("this gateway wants a token; get one with: s2uc login GATEWAY")
        if is_bare(authorization) and not compat.bare_tokens:
            raise Unauthenticated("this gateway wants the token as: Bearer TOKEN")
        sha256 = digest(token)
        if token.startswith(TOKEN_PREFIX):
            return self._insider(sha256)
        if self._opens_session(sha256):  # before anybody else is asked: it is nobody else's business
            return KeyHolder(sha256)
        method = self._methods.of(token)
        return KeyHolder(sha256) if method is None else self._outsider(await method.identify(token))

    def _without_token(self, name: str) -> Caller:
        """Give the user that stands for old clients without a token, with no rights over others."""
        try:
            user = self._store.users.by_name(name)
        except NotFound:
            raise Unauthenticated(
                f"this gateway wants a token: [compat] user is {name}, and there is none; its operator adds one"
            ) from None
        caller = Caller(user.name, user.id, Rank.USER, user.groups, frozenset({"sessions"}), WITHOUT_TOKEN)
        if user.disabled:
            raise KeptOut(caller)
        self._used[user.id] = time.time()
        return caller

    def _insider(self, sha256: bytes) -> Caller | KeyHolder:
        """Look a token of this gateway up. It has 256 random bits: how long the look takes tells nothing."""
        found = self._store.users.by_token(sha256)
        if found is None:
            return KeyHolder(sha256)
        if not self._methods.auth.tokens:
            raise Unauthenticated("this gateway takes no tokens of its own now; s2uc login takes one that it does")
        user, token = found
        if time.time() >= token.expires_at:
            raise Unauthenticated(f"token {token.id} of {user.name} has expired; ask the operator for a new one")
        role = user.rank if "admin" in token.scopes else Rank.USER
        scopes = token.scopes if role > Rank.USER else token.scopes - {"admin"}  # it would be for nothing
        caller = Caller(user.name, user.id, role, user.groups, scopes, "token", token.expires_at)
        if user.disabled:
            raise KeptOut(caller)
        self._used[token.id] = self._used[user.id] = time.time()
        return caller

    def _outsider(self, caller: Caller) -> Caller:
        """Note an outsider at the first time, and whenever something is different; turn away who is disabled."""
        known = self._store.users.by_id(caller.id)
        if known is None or (known.name, known.rank, known.groups) != (caller.name, caller.role, caller.groups):
            known = self._store.users.meet(User(caller.id, caller.name, caller.role, caller.groups))
        if known.disabled:
            raise KeptOut(caller)
        self._used[caller.id] = time.time()
        return caller

    async def _note_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_NOTE_S)
            self._note()

    def _note(self) -> None:
        """Write down who was here since the last time; not at each call, which would wait for the disk."""
        used, self._used = self._used, {}
        try:
            if used:
                self._store.users.note_uses(used)
        except ScistreamError as error:
            log.warning("who was here is not noted: %s", error)


async def _close_later(methods: Methods) -> None:
    try:
        await asyncio.sleep(_GRACE_S)
    finally:
        await methods.close()
