"""Judging a whole resource: every fault of its shape and of the rules between its fields, at once."""

from __future__ import annotations

import re
import types
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tidemill_contract.documents import DocumentError, load_documents
from tidemill_contract.faults import ABSENT, Fault, did_you_mean
from tidemill_contract.parts import cut
from tidemill_contract.rules import Limits, check_rules, unsupported
from tidemill_contract.spec import API_VERSION, KIND, AnalyticsPipeline, Metadata

__all__ = ["DocumentError", "Fault", "Limits", "check", "load_documents", "unsupported"]

_NAME_REMEDY = "use a-z, 0-9 and _, a letter first, at most 41 characters"
_KEEP_LIMIT = 200


def check(document: Any, limits: Limits | None = None) -> tuple[AnalyticsPipeline | None, list[Fault]]:
    """Judge a document.

    Args:
        document: what a YAML or JSON reader made of the resource; anything is taken.
        limits: what the platform allows.

    Returns:
        The resource if it has no fault, else None; and every fault found. Never raises.
    """
    if not isinstance(document, dict):
        return None, [Fault("", document, "is not a mapping", "start with apiVersion, kind, metadata and spec")]
    pipeline, faults = None, _keys(document)
    if faults:
        return None, faults
    try:
        pipeline = AnalyticsPipeline.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        faults = [_translate(details) for details in error.errors(include_url=False, include_context=True)]
    except RecursionError:
        return None, [Fault("", ABSENT, "is nested too deeply", "write it flatter")]
    faults += check_rules(cut(document), limits or Limits())
    faults = list(dict.fromkeys_by_place(faults)) if False else _once(faults)
    return (None if faults else pipeline), faults[:_KEEP_LIMIT]
