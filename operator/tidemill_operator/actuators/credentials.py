"""Store a pipeline's passwords and API keys as files, and rotate the logins.

The writer and the reader have two logins each, an active login and an inactive login. A rotation stores new passwords
for the inactive logins in `rotation.json`. Later steps activate the new logins, and then disable the old logins.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from tidemill_chassis.auth import EVENTS_APPEND, QUERY_READ
from tidemill_contract import names
from tidemill_contract.runtime import ApiKey, ApiKeys, PostgresCredentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.errors import Reason, TidemillError

WRITER, READER, API_KEYS, API_KEY, ROTATION = (
    "writer.json",
    "reader.json",
    "api-keys.json",
    "api-key.txt",
    "rotation.json",
)
FILES = (WRITER, READER, API_KEY, API_KEYS, ROTATION)
_PASSWORD_BYTES = 32

Files = Mapping[str, str]


class Rotation(BaseModel):
    """The state of the last rotation.

    Attributes:
        done: text of the rotation request that created the active logins.
        wanted: text of the latest rotation request.
        following: new logins that the rotation has not activated yet, by file name.
        switched_at: time of the last activation, or None if the replaced logins are disabled.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    done: str = ""
    wanted: str = ""
    following: dict[str, PostgresCredentials] = {}
    switched_at: dt.datetime | None = None


def files_to_ensure(files: Files, *, writer: str, reader: str, rotate: str) -> dict[str, str]:
    """Return the files to write. If the rotation request `rotate` has changed, a rotation of the logins starts.

    Raises:
        TidemillError: a file has invalid content.
    """
    changed: dict[str, str] = {}
    before = _rotation(files)
    active: dict[str, PostgresCredentials] = {}
    for file, role in ((WRITER, writer), (READER, reader)):
        login = _login(files, file) if file in files else None
        if login is None or login.user not in (role, *names.login_roles(role)):
            staged = before.following.get(file)
            login = new_login(_other_user(staged.user if staged else names.login_roles(role)[1], role))
            changed[file] = login.model_dump_json()
        active[file] = login
    if API_KEYS not in files:
        keys, key = new_api_key()
        changed |= {API_KEY: f"{key}\n", API_KEYS: keys.model_dump_json(indent=1)}
    after = _start_rotation(
        before, active, {WRITER: writer, READER: reader}, rotate, fresh=changed.keys() >= {WRITER, READER}
    )
    if after != before:
        changed[ROTATION] = after.model_dump_json()
    return changed


def _start_rotation(
    rotation: Rotation,
    active: Mapping[str, PostgresCredentials],
    roles: Mapping[str, str],
    rotate: str,
    *,
    fresh: bool,
) -> Rotation:
    if rotation.following:
        return rotation.model_copy(update={"wanted": rotate or rotation.wanted})
    requested = bool(rotate) and rotate != rotation.done
    if requested and fresh:
        return Rotation(done=rotate)
    # Rotate logins of earlier Tidemill versions, which used the group role as the login.
    outdated = any(login.user == roles[file] for file, login in active.items())
    if rotation.switched_at is not None or not (requested or outdated):
        return rotation
    following = {file: new_login(_other_user(login.user, roles[file])) for file, login in active.items()}
    return rotation.model_copy(update={"wanted": rotate or rotation.done, "following": following})


def _other_user(user: str, role: str) -> str:
    first, second = names.login_roles(role)
    return second if user == first else first


def files_to_switch(files: Files, now: dt.datetime) -> dict[str, str]:
    """Return the files that activate new logins, or an empty mapping if there are no new logins."""
    rotation = _rotation(files)
    if not rotation.following:
        return {}
    after = Rotation(done=rotation.wanted, switched_at=now)
    return {
        **{file: login.model_dump_json() for file, login in rotation.following.items()},
        ROTATION: after.model_dump_json(),
    }


def files_to_retire(files: Files) -> dict[str, str]:
    """Return the files to write at the end of a rotation. If no replaced login is enabled, the result is empty."""
    rotation = _rotation(files)
    if rotation.switched_at is None:
        return {}
    return {ROTATION: rotation.model_copy(update={"switched_at": None}).model_dump_json()}


def read_logins(files: Files, *, retire_delay_seconds: float, changed: int) -> PipelineSecrets:
    """Return the logins that are stored in the files of a pipeline.

    Raises:
        TidemillError: a file has invalid content.
    """
    rotation = _rotation(files)
    switched_at = rotation.switched_at
    return PipelineSecrets(
        _login(files, WRITER),
        _login(files, READER),
        changed,
        staged=tuple(rotation.following.values()),
        retire_at=switched_at + dt.timedelta(seconds=retire_delay_seconds) if switched_at else None,
        completed_rotation=rotation.done,
    )


def new_login(user: str) -> PostgresCredentials:
    """Return a login with a random password."""
    return PostgresCredentials(user=user, password=secrets.token_urlsafe(_PASSWORD_BYTES))


def new_api_key() -> tuple[ApiKeys, str]:
    """Create an API key for appending and querying events.

    Return the hash of the key, and the key.
    """
    # Use letters and digits only, because `_` separates the parts of a key.
    key_id, secret = secrets.token_hex(4), secrets.token_hex(_PASSWORD_BYTES)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    keys = ApiKeys(keys=(ApiKey(id=key_id, sha256=digest, scopes=(EVENTS_APPEND, QUERY_READ)),))
    return keys, f"tm_{key_id}_{secret}"


def _login(files: Files, file: str) -> PostgresCredentials:
    try:
        return PostgresCredentials.model_validate_json(files[file])
    except ValidationError:  # hide pydantic's message, which shows the secret
        raise TidemillError(
            Reason.REFUSED, f"{file} does not hold a login", "delete the file, so that a new password is generated"
        ) from None


def _rotation(files: Files) -> Rotation:
    try:
        return Rotation.model_validate_json(files.get(ROTATION, "{}"))
    except ValidationError:
        raise TidemillError(
            Reason.REFUSED, f"{ROTATION} does not describe a rotation", "delete the file; the active logins are kept"
        ) from None
