"""A pipeline's passwords and API keys as a Secret of its own: made once; keys are changed by its holders only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from tidemill_contract.runtime import PostgresCredentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.kubernetes_api import SECRET, Api, Document
from tidemill_operator.actuators.secrets import new_api_key, new_login
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import marks, objects
from tidemill_operator.plan.render.marks import OwnerReference

WRITER, READER, API_KEYS, API_KEY = "writer.json", "reader.json", "api-keys.json", "api-key.txt"


class KubernetesSecrets:
    """The Secret `<pipeline>-credentials`.

    `writer.json` and `reader.json` hold logins, `api-keys.json` the hashes of API keys, `api-key.txt` the one key that
    is made at first, with both scopes. It goes with the resource.

    Args:
        api: the cluster.
        owner: the pipeline that this pass is about.
    """

    def __init__(self, api: Api, owner: OwnerReference) -> None:
        self._api, self._owner = api, owner

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str) -> PipelineSecrets:
        """The logins of the two roles, made once; API keys likewise.

        Raises:
            TidemillError: the Secret is somebody else's or does not hold what it should, or the API does not answer.
        """
        name = marks.credentials(pipeline)
        live = self._api.get(SECRET, namespace, name)
        if live is not None and not _ours(live):
            raise TidemillError(
                Reason.RESOURCE_CONFLICT,
                f"Secret {namespace}/{name} exists and was not made by Tidemill",
                "rename the pipeline, or delete the Secret",
            )
        files = decoded(live) if live else {}
        made = {file: text for file, text in _missing(files, writer=writer, reader=reader).items()}
        files = {**files, **made}
        if live is None:
            metadata = marks.own_metadata(
                name, namespace, pipeline=pipeline, component="credentials", owner=self._owner
            )
            # Created, not applied: of two that make it at once one fails, and reads the other's passwords next time.
            self._api.create(objects.secret(metadata, files))
        elif made or not _owned(live, self._owner):
            # Tied to what was read, so that no password is lost to somebody else's.
            metadata = {
                "resourceVersion": live["metadata"]["resourceVersion"],
                "labels": {marks.OWNER_UID: self._owner.uid},
                "ownerReferences": [self._owner.manifest(controller=True)],
            }
            patch = {"metadata": metadata, "data": objects.secret({}, made)["data"]}
            self._api.merge(SECRET, namespace, name, patch)
            made = made or {"": ""}
        login = {file: _login(files[file], f"{namespace}/{name}", file) for file in (WRITER, READER)}
        return PipelineSecrets(login[WRITER], login[READER], len(made))

    def remove(self, namespace: str, pipeline: str) -> None:
        """Forget a pipeline's secrets."""
        live = self._api.get(SECRET, namespace, marks.credentials(pipeline))
        if live is not None and _ours(live) and _owned(live, self._owner):
            self._api.delete(SECRET, namespace, marks.credentials(pipeline), uid=live["metadata"]["uid"])


def decoded(secret: Document) -> dict[str, str]:
    """The files of a Secret.

    Raises:
        TidemillError: one is not text.
    """
    try:
        return {name: base64.b64decode(text).decode() for name, text in (secret.get("data") or {}).items()}
    except (binascii.Error, UnicodeDecodeError):
        metadata = secret["metadata"]
        raise TidemillError(
            Reason.REFUSED, f"Secret {metadata.get('namespace')}/{metadata['name']} holds what is no text", "delete it"
        ) from None


def _missing(files: Mapping[str, str], *, writer: str, reader: str) -> dict[str, str]:
    """What has to be made: absent files, and logins of roles that have another name now."""
    made = {}
    for file, user in ((WRITER, writer), (READER, reader)):
        if file not in files or _user(files[file]) not in (user, None):
            made[file] = new_login(user).model_dump_json()
    if API_KEYS not in files:
        keys, key = new_api_key()
        made |= {API_KEYS: keys.model_dump_json(indent=1), API_KEY: f"{key}\n"}
    return made


def _user(text: str) -> str | None:
    try:
        return PostgresCredentials.model_validate_json(text).user
    except ValueError:
        return None


def _login(text: str, secret: str, file: str) -> PostgresCredentials:
    try:
        return PostgresCredentials.model_validate_json(text)
    except ValueError:
        # The parser's message would show the text.
        raise TidemillError(
            Reason.REFUSED,
            f"{file} of Secret {secret} does not hold a login",
            "delete the key; a password is made then",
        ) from None


def _ours(live: Document) -> bool:
    return bool(live["metadata"].get("labels", {}).get(marks.MANAGED_BY) == marks.MANAGER)


def _owned(live: Document, owner: OwnerReference) -> bool:
    return any(reference.get("uid") == owner.uid for reference in live["metadata"].get("ownerReferences", ()))
