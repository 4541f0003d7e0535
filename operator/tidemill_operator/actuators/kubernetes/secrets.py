"""Store a pipeline's passwords and API keys in its Secret."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace

from tidemill_contract.kafka_login import KEYS, LoginError
from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.credentials import WRITER as WRITER
from tidemill_operator.actuators.kafka.clusters import SecretReader
from tidemill_operator.actuators.kubernetes.api import SECRET, Api, Document
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import object_metadata, objects
from tidemill_operator.plan.render.object_metadata import OwnerReference

# Nodes update mounted Secrets about once a minute.
RETIRE_DELAY_SECONDS = 120.0


class KubernetesSecrets:
    """The Secret `<pipeline>-credentials`, with the files of `actuators.credentials`."""

    def __init__(self, api: Api, owner: OwnerReference, *, retire_delay_seconds: float = RETIRE_DELAY_SECONDS) -> None:
        self._api, self._owner, self._retire_delay = api, owner, retire_delay_seconds

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Create missing logins and API keys, and start a requested rotation.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewrite(
            namespace,
            pipeline,
            lambda files: credentials.files_to_ensure(files, writer=writer, reader=reader, rotate=rotate),
        )

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewrite(namespace, pipeline, lambda files: credentials.files_to_switch(files, now))

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Disable the replaced logins.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewrite(namespace, pipeline, credentials.files_to_retire)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Delete the Secret if it belongs to this pipeline."""
        name = object_metadata.credentials_secret(pipeline)
        live = self._api.get(SECRET, namespace, name)
        if live is not None and _is_ours(live) and _is_owned(live, self._owner):
            self._api.delete(SECRET, namespace, name, uid=live["metadata"]["uid"])

    def _rewrite(
        self, namespace: str, pipeline: str, change: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> PipelineSecrets:
        name = object_metadata.credentials_secret(pipeline)
        live = self._api.get(SECRET, namespace, name)
        if live is not None and not _is_ours(live):
            raise TidemillError(
                Reason.RESOURCE_CONFLICT,
                f"Secret {namespace}/{name} exists and was not made by Tidemill",
                "rename the pipeline, or delete the Secret",
            )
        files = decoded(live) if live else {}
        try:
            changed = change(files)
            logins = credentials.read_logins(
                {**files, **changed}, retire_delay_seconds=self._retire_delay, changed=len(changed)
            )
        except TidemillError as error:
            raise TidemillError(error.reason, f"Secret {namespace}/{name}: {error.message}", error.remedy) from None
        if live is None:
            metadata = object_metadata.own_metadata(
                name, namespace, pipeline=pipeline, component="credentials", owner=self._owner
            )
            # If two operators create the Secret at once, the second operator gets a conflict. The second operator's
            # next pass tries again.
            self._api.create(objects.secret(metadata, changed))
        elif changed or not _is_owned(live, self._owner):
            # Because of resourceVersion, the write fails if another operator has changed the Secret since the read.
            metadata = {
                "resourceVersion": live["metadata"]["resourceVersion"],
                "labels": {object_metadata.OWNER_UID: self._owner.uid},
                "ownerReferences": [self._owner.manifest(controller=True)],
            }
            patch = {"metadata": metadata, "data": objects.secret({}, changed)["data"]}
            self._api.merge(SECRET, namespace, name, patch)
            logins = replace(logins, changed=max(1, len(changed)))
        return logins


def secret_reader(api: Api) -> SecretReader:
    """Return a reader of the Secrets that users name for other Kafka clusters."""

    def read(namespace: str, name: str) -> dict[str, str]:
        secret = api.get(SECRET, namespace, name)
        if secret is None:
            raise LoginError("there is no such Secret; create it in the pipeline's namespace")
        data = secret.get("data") or {}
        try:
            return {key: base64.b64decode(data[key]).decode() for key in KEYS if key in data}
        except (binascii.Error, UnicodeDecodeError):
            raise LoginError("a key is not UTF-8 text; correct the Secret") from None

    return read


def decoded(secret: Document) -> dict[str, str]:
    """Return the files of a Secret.

    Raises:
        TidemillError: a file is not text.
    """
    try:
        return {name: base64.b64decode(text).decode() for name, text in (secret.get("data") or {}).items()}
    except (binascii.Error, UnicodeDecodeError):
        metadata = secret["metadata"]
        raise TidemillError(
            Reason.REFUSED,
            f"Secret {metadata.get('namespace')}/{metadata['name']} contains data that is not text",
            "delete it",
        ) from None


def _is_ours(live: Document) -> bool:
    return bool(live["metadata"].get("labels", {}).get(object_metadata.MANAGED_BY) == object_metadata.MANAGER)


def _is_owned(live: Document, owner: OwnerReference) -> bool:
    return any(reference.get("uid") == owner.uid for reference in live["metadata"].get("ownerReferences", ()))
