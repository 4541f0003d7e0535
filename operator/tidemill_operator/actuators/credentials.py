"""A pipeline's passwords and API keys as texts by file name: which there must be, and how a rotation changes them.

Where the files lie is others' affair. Each function (writer, reader) has two logins, A and B, of which one is in force.
A rotation is three writes, and whoever comes next sees how far it is:

- staged: `rotation.json` holds passwords of the other logins, so that Postgres can be told;
- switched: those are in `writer.json` and `reader.json`, and the former may log in until everything runs with the new;
- retired: the former may not log in any more.
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
    """How far the last rotation is.

    Attributes:
        done: what asked for the one that was switched last; empty: nothing ever did.
        wanted: what asks for the one that is staged.
        following: its logins by file; empty: none is staged.
        switched_at: when logins were switched, while the former may still log in.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    done: str = ""
    wanted: str = ""
    following: dict[str, PostgresCredentials] = {}
    switched_at: dt.datetime | None = None


def due(files: Files, *, writer: str, reader: str, rotate: str) -> dict[str, str]:
    """The files that have to be written.

    Args:
        files: those that are there.
        writer: the role whose rights the writer's logins have.
        reader: likewise.
        rotate: what asks for a rotation: another text than the last one, or empty.

    Raises:
        TidemillError: a file does not hold what it should.
    """
    made: dict[str, str] = {}
    before = _rotation(files)
    in_force: dict[str, PostgresCredentials] = {}
    for file, role in ((WRITER, writer), (READER, reader)):
        found = _login(files, file) if file in files else None
        if found is None or found.user not in (role, *names.logins(role)):
            taken = before.following.get(file)
            found = new_login(_other(taken.user if taken else names.logins(role)[1], role))
            made[file] = found.model_dump_json()
        in_force[file] = found
    if API_KEYS not in files:
        keys, key = new_api_key()
        made |= {API_KEY: f"{key}\n", API_KEYS: keys.model_dump_json(indent=1)}
    after = _staged(before, in_force, {WRITER: writer, READER: reader}, rotate, fresh=made.keys() >= {WRITER, READER})
    if after != before:
        made[ROTATION] = after.model_dump_json()
    return made


def _staged(
    known: Rotation, in_force: Mapping[str, PostgresCredentials], roles: Mapping[str, str], rotate: str, *, fresh: bool
) -> Rotation:
    if known.following:
        return known.model_copy(update={"wanted": rotate or known.wanted})
    asked = bool(rotate) and rotate != known.done
    if asked and fresh:
        return Rotation(done=rotate)
    # A role that has the rights itself is of a version that had one login each.
    outdated = any(login.user == roles[file] for file, login in in_force.items())
    if known.switched_at is not None or not (asked or outdated):
        return known
    following = {file: new_login(_other(login.user, roles[file])) for file, login in in_force.items()}
    return known.model_copy(update={"wanted": rotate or known.done, "following": following})


def _other(user: str, role: str) -> str:
    first, second = names.logins(role)
    return second if user == first else first


def switched(files: Files, now: dt.datetime) -> dict[str, str]:
    """The files that put the staged logins in force, the one that says so last; none if none is staged."""
    known = _rotation(files)
    if not known.following:
        return {}
    after = Rotation(done=known.wanted, switched_at=now)
    return {
        **{file: login.model_dump_json() for file, login in known.following.items()},
        ROTATION: after.model_dump_json(),
    }


def retired(files: Files) -> dict[str, str]:
    """The file that lets go of the former logins; none if that has been done."""
    known = _rotation(files)
    if known.switched_at is None:
        return {}
    return {ROTATION: known.model_copy(update={"switched_at": None}).model_dump_json()}


def told(files: Files, *, patience_seconds: float, changed: int) -> PipelineSecrets:
    """The logins in files that are complete.

    Args:
        files: all of them.
        patience_seconds: how long after a switch workloads may not have seen it.
        changed: how many had to be written.

    Raises:
        TidemillError: a file does not hold what it should.
    """
    rotation = _rotation(files)
    at = rotation.switched_at
    return PipelineSecrets(
        _login(files, WRITER),
        _login(files, READER),
        changed,
        following=tuple(rotation.following.values()),
        retire_at=at + dt.timedelta(seconds=patience_seconds) if at else None,
        rotated=rotation.done,
    )


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


def _login(files: Files, file: str) -> PostgresCredentials:
    try:
        return PostgresCredentials.model_validate_json(files[file])
    except ValidationError:  # whose message would show the text
        raise TidemillError(
            Reason.REFUSED, f"{file} does not hold a login", "delete it; a new password is made then"
        ) from None


def _rotation(files: Files) -> Rotation:
    try:
        return Rotation.model_validate_json(files.get(ROTATION, "{}"))
    except ValidationError:
        raise TidemillError(
            Reason.REFUSED, f"{ROTATION} does not tell of a rotation", "delete it; the logins in force stay"
        ) from None
