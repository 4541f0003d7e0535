"""A pipeline's passwords and API keys as a Secret of its own; keys are changed by their holders only."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Mapping
from dataclasses import replace

from tidemill_operator.actuators import credentials
from tidemill_operator.actuators.base import PipelineSecrets
from tidemill_operator.actuators.credentials import WRITER as WRITER
from tidemill_operator.actuators.kubernetes.api import SECRET, Api, Document
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.render import marks, objects
from tidemill_operator.plan.render.marks import OwnerReference

# A node renews the files of its pods when it is told, else once a minute or so.
PATIENCE_SECONDS = 120.0


class KubernetesSecrets:
    """The Secret `<pipeline>-credentials`.

    `writer.json` and `reader.json` hold logins, `api-keys.json` the hashes of API keys, `api-key.txt` the one key that
    is made at first, with both scopes, and `rotation.json` how far a rotation of the logins is. It goes with the
    resource.

    Args:
        api: the cluster.
        owner: the pipeline that this pass is about.
        patience_seconds: how long after a switch pods may not have seen it.
    """

    def __init__(self, api: Api, owner: OwnerReference, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._api, self._owner, self._patience = api, owner, patience_seconds

    def ensure(self, namespace: str, pipeline: str, *, writer: str, reader: str, rotate: str = "") -> PipelineSecrets:
        """The logins of the two roles; API keys likewise. A rotation that is asked for is staged.

        Raises:
            TidemillError: the Secret is somebody else's or does not hold what it should, or the API does not answer.
        """
        return self._rewritten(
            namespace,
            pipeline,
            lambda files: credentials.due(files, writer=writer, reader=reader, rotate=rotate),
        )

    def switch(self, namespace: str, pipeline: str, *, now: dt.datetime) -> PipelineSecrets:
        """Put the staged logins in force.

        Raises:
            TidemillError: as `ensure`.
        """
        return self._rewritten(namespace, pipeline, lambda files: credentials.switched(files, now))

    def retire(self, namespace: str, pipeline: str) -> PipelineSecrets:
        """Let go of the logins that were in force before.

        Raises:
            TidemillError: as `ensure`.
        """
        return self._rewritten(namespace, pipeline, credentials.retired)

    def remove(self, namespace: str, pipeline: str) -> None:
        """Forget a pipeline's secrets."""
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
            told = credentials.told({**files, **made}, patience_seconds=self._patience, changed=len(made))
        except TidemillError as error:
            raise TidemillError(error.reason, f"Secret {namespace}/{name}: {error.message}", error.remedy) from None
        if live is None:
            metadata = marks.own_metadata(
                name, namespace, pipeline=pipeline, component="credentials", owner=self._owner
            )
            # Created, not applied: of two that make it at once one fails, and reads the other's passwords next time.
            self._api.create(objects.secret(metadata, made))
        elif made or not _owned(live, self._owner):
            # Tied to what was read, so that no password is lost to somebody else's.
            metadata = {
                "resourceVersion": live["metadata"]["resourceVersion"],
                "labels": {marks.OWNER_UID: self._owner.uid},
                "ownerReferences": [self._owner.manifest(controller=True)],
            }
            patch = {"metadata": metadata, "data": objects.secret({}, made)["data"]}
            self._api.merge(SECRET, namespace, name, patch)
            told = replace(told, changed=max(1, len(made)))
        return told


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


def _ours(live: Document) -> bool:
    return bool(live["metadata"].get("labels", {}).get(marks.MANAGED_BY) == marks.MANAGER)


def _owned(live: Document, owner: OwnerReference) -> bool:
    return any(reference.get("uid") == owner.uid for reference in live["metadata"].get("ownerReferences", ()))
