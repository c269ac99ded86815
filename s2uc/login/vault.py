"""Where tokens are kept: in a file of the user's directory, mode 0600, or in the system's keyring."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from s2uc.files import private_directory, read_secret_json, remove, write_secret
from s2uc.login.grant import Grant
from scistream.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument
from scistream.vocabulary import shown

STORES = ("file", "keyring")
_SERVICE = "scistream"
_LOCK_S = 30.0  # longer than an issuer may take to renew a token
_POLL_S = 0.02


class Vault(Protocol):
    """One gateway's tokens."""

    def load(self) -> Grant | None:
        """Give what is kept; None when nothing is."""

    def save(self, grant: Grant) -> None:
        """Keep it, in place of what was."""

    def forget(self) -> None:
        """Keep nothing."""


class FileVault:
    """Tokens in `logins/NAME.json`."""

    def __init__(self, directory: Path, name: str) -> None:
        self._path = directory / "logins" / f"{name}.json"

    def load(self) -> Grant | None:
        """Read the file."""
        if not self._path.exists():
            return None
        content = read_secret_json(self._path, "a login of s2uc")
        try:
            return Grant.from_dict(content)
        except InvalidArgument:
            raise InvalidArgument(f"{self._path} is not a login of s2uc; remove it and log in again") from None

    def save(self, grant: Grant) -> None:
        """Write the file whole."""
        private_directory(self._path.parent)
        write_secret(self._path, json.dumps(grant.as_dict(), indent=1) + "\n")

    def forget(self) -> None:
        """Remove the file."""
        remove(self._path)


class KeyringVault:
    """Tokens in the keyring of the desktop or the system: Secret Service, KWallet, macOS Keychain."""

    def __init__(self, directory: Path, name: str) -> None:
        self._user = f"{name} ({directory.absolute()})"
        try:
            import keyring  # noqa: PLC0415 - an extra
            import keyring.errors  # noqa: PLC0415
        except ImportError:
            raise FailedPrecondition("the keyring needs a package: pip install 'scistream[keyring]'") from None
        self._keyring: Any = keyring
        self._errors: Any = keyring.errors

    def load(self) -> Grant | None:
        """Ask the keyring."""
        text = self._do("get_password", _SERVICE, self._user)
        if text is None:
            return None
        try:
            return Grant.from_dict(json.loads(text))
        except (ValueError, TypeError, InvalidArgument):
            raise InvalidArgument(f"the keyring's entry {shown(self._user)} is damaged; log in again") from None

    def save(self, grant: Grant) -> None:
        """Tell the keyring."""
        self._do("set_password", _SERVICE, self._user, json.dumps(grant.as_dict()))

    def forget(self) -> None:
        """Take it out of the keyring."""
        if self.load() is not None:
            self._do("delete_password", _SERVICE, self._user)

    def _do(self, method: str, *arguments: str) -> Any:
        try:
            return getattr(self._keyring, method)(*arguments)
        except self._errors.NoKeyringError:
            raise FailedPrecondition("there is no keyring on this computer; use --store file") from None
        except (self._errors.KeyringError, OSError) as error:
            raise FailedPrecondition(f"the keyring does not open: {error}; unlock it, or use --store file") from None


def vault(directory: Path, name: str, store: str) -> Vault:
    """Give the place of one gateway's tokens.

    Args:
        directory: the user's configuration.
        name: the gateway.
        store: one of `STORES`.
    """
    if store not in STORES:
        raise InvalidArgument(f"token store {shown(store)} is unknown; use one of {', '.join(STORES)}")
    return KeyringVault(directory, name) if store == "keyring" else FileVault(directory, name)


@asynccontextmanager
async def locked(directory: Path, name: str) -> AsyncIterator[None]:
    """Be the only one, in this process and in all others, that changes a gateway's tokens.

    Raises:
        DeadlineExceeded: another one does not come to an end.
    """
    from filelock import AsyncFileLock, Timeout  # noqa: PLC0415 - only logins need it

    path = directory / "logins" / f"{name}.lock"
    private_directory(path.parent)
    lock = AsyncFileLock(path, timeout=_LOCK_S, mode=0o600, poll_interval=_POLL_S)
    try:
        await lock.acquire()
    except Timeout:
        raise DeadlineExceeded(f"another s2uc holds {path} for {_LOCK_S:g} s; end it, or try again") from None
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be locked: {error.strerror}") from None
    try:
        yield
    finally:
        await lock.release()
