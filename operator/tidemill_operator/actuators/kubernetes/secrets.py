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
from tidemill_operator.actuators.kafka.clusters import Keys
from tidemill_operator.actuators.kubernetes.api import SECRET, Api, Document
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import marks, objects
from tidemill_operator.plan.render.marks import OwnerReference

# Nodes update mounted Secrets about once a minute.
PATIENCE_SECONDS = 120.0


class KubernetesSecrets:
    """The Secret `<pipeline>-credentials`, with the files of `actuators.credentials`."""

    def __init__(self, api: Api, owner: OwnerReference, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._api, self._owner, self._patience = api, owner, patience_seconds

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """Create missing logins and API keys, and start a requested rotation.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewritten(
            namespace,
            pipeline,
            lambda files: credentials.due(files, writer=writer, reader=reader, rotate=rotate),
        )

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Activate the staged logins.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewritten(namespace, pipeline, lambda files: credentials.switched(files, now))

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Disable the replaced logins.

        Raises:
            TidemillError: the Secret has another owner or invalid content, or the API does not answer.
        """
        return self._rewritten(namespace, pipeline, credentials.retired)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Delete the Secret if it belongs to this pipeline."""
        live = self._api.get(SECRET, namespace, marks.credentials(pipeline))
        if live is not None and _ours(live) and _owned(live, self._owner):
            self._api.delete(SECRET, namespace, marks.credentials(pipeline), uid=live["metadata"]["uid"])

    def _rewritten(
        self, namespace: str, pipeline: str, change: Callable[[Mapping[str, str]], dict[str, str]]
    ) -> PipelineSecrets:
        name = marks.credentials(pipeline)
        live = self._api.get(SECRET, namespace, name)
        if live is not None and not _ours(live):
            raise TidemillError(
                Reason.RESOURCE_CONFLICT,
                f"Secret {namespace}/{name} exists and was not made by Tidemill",
                "rename the pipeline, or delete the Secret",
            )
        files = decoded(live) if live else {}
        try:
            made = change(files)
            logins = credentials.told({**files, **made}, patience_seconds=self._patience, changed=len(made))
        except TidemillError as error:
            raise TidemillError(error.reason, f"Secret {namespace}/{name}: {error.message}", error.remedy) from None
        if live is None:
            metadata = marks.own_metadata(
                name, namespace, pipeline=pipeline, component="credentials", owner=self._owner
            )
            # If two operators create the Secret at once, the second operator gets a conflict. The second operator's
            # next pass tries again.
            self._api.create(objects.secret(metadata, made))
        elif made or not _owned(live, self._owner):
            # Because of resourceVersion, the write fails if another operator has changed the Secret since the read.
            metadata = {
                "resourceVersion": live["metadata"]["resourceVersion"],
                "labels": {marks.OWNER_UID: self._owner.uid},
                "ownerReferences": [self._owner.manifest(controller=True)],
            }
            patch = {"metadata": metadata, "data": objects.secret({}, made)["data"]}
            self._api.merge(SECRET, namespace, name, patch)
            logins = replace(logins, changed=max(1, len(made)))
        return logins


def keys_in_cluster(api: Api) -> Keys:
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


def _ours(live: Document) -> bool:
    return bool(live["metadata"].get("labels", {}).get(marks.MANAGED_BY) == marks.MANAGER)


def _owned(live: Document, owner: OwnerReference) -> bool:
    return any(reference.get("uid") == owner.uid for reference in live["metadata"].get("ownerReferences", ()))
