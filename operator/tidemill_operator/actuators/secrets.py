"""A pipeline's passwords and API keys as files: made once, readable by their owner only, never changed afterwards."""

from __future__ import annotations

import hashlib
import secrets
import shutil
from pathlib import Path

from tidemill_contract.auth import EVENTS_APPEND, QUERY_READ
from tidemill_contract.runtime import ApiKey, ApiKeys, PostgresCredentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.local.files import write_atomic

_PASSWORD_BYTES = 32


class FileSecrets:
    """Secrets below a folder, `<root>/<namespace>/<pipeline>/`.

    `writer.json` and `reader.json` hold logins, `api-keys.json` the hashes of API keys, and `api-key.txt` the one key
    that is made at first, with both scopes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str) -> PipelineSecrets:
        """The logins of the two roles, made once; API keys likewise.

        Raises:
            TidemillError: a file cannot be written, or does not hold what it should.
        """
        folder = self._root / namespace / pipeline
        try:
            for part in (self._root, self._root / namespace, folder):
                part.mkdir(mode=0o700, parents=True, exist_ok=True)
            writes_it, made_writer = _login(folder / "writer.json", writer)
            reads_it, made_reader = _login(folder / "reader.json", reader)
            made_keys = _api_keys(folder)
        except OSError as error:
            raise TidemillError(
                Reason.REFUSED, f"secrets of {namespace}/{pipeline}: {error}", "make the folder writable"
            ) from error
        return PipelineSecrets(writes_it, reads_it, made_writer + made_reader + made_keys)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Forget a pipeline's secrets."""
        shutil.rmtree(self._root / namespace / pipeline, ignore_errors=True)


def _login(path: Path, user: str) -> tuple[PostgresCredentials, int]:
    if path.exists():
        try:
            found = PostgresCredentials.model_validate_json(path.read_bytes())
        except ValueError:
            raise TidemillError(
                Reason.REFUSED, f"{path} does not hold a login", "delete it; a new password is made then"
            ) from None
        if found.user == user:
            return found, 0
    login = new_login(user)
    write_atomic(path, login.model_dump_json(), mode=0o600)
    return login, 1


def new_login(user: str) -> PostgresCredentials:
    """A login with a password that nobody has had before."""
    return PostgresCredentials(user=user, password=secrets.token_urlsafe(_PASSWORD_BYTES))


def new_api_key() -> tuple[ApiKeys, str]:
    """One API key with both scopes: what the workloads read, and the key as its holder sends it."""
    # Letters and digits only: `_` parts the key, and `-` stops a double click.
    key_id, secret = secrets.token_hex(4), secrets.token_hex(_PASSWORD_BYTES)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    keys = ApiKeys(keys=(ApiKey(id=key_id, sha256=digest, scopes=(EVENTS_APPEND, QUERY_READ)),))
    return keys, f"tm_{key_id}_{secret}"


def _api_keys(folder: Path) -> int:
    path = folder / "api-keys.json"
    if path.exists():
        return 0
    keys, key = new_api_key()
    write_atomic(folder / "api-key.txt", f"{key}\n", mode=0o600)
    write_atomic(path, keys.model_dump_json(indent=1), mode=0o600)
    return 1
