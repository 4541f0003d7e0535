"""Writes the drafted pipeline as YAML, with comments about what the user should check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tidemill_contract.calendars import DAY_MS
from tidemill_contract.duration import format_ms
from tidemill_contract.events.timestamps import UNITS
from tidemill_contract.resource.documents import load_documents
from tidemill_contract.resource.faults import one_line
from tidemill_contract.resource.paths import read_path
from tidemill_contract.resource.spec import API_VERSION, KIND
from tidemill_contract.resource.validate import TopicLimits, check_document
from tidemill_operator.inference.choices import Choices, choose, round_up_ms
from tidemill_operator.inference.columns import MAX_FIELDS, Sample
from tidemill_operator.inference.field_types import FieldDraft, draft_field
from tidemill_operator.inference.naming import YAML_WORDS, field_names

_PLAIN = re.compile(r"[A-Za-z_][\w %./-]*|[0-9]+(?:s|m|h|d)", re.ASCII)
_PLAIN_PATH = re.compile(r"[^.\[\]]+")
_EXAMPLES, _EXAMPLE_CHARACTERS = 3, 24
_LONG_RETENTION = "3650d"
_MAX_LISTED = 20
_HOUR_MS = 3_600_000
_LONG_SPAN_MS = 60 * DAY_MS


@dataclass(frozen=True)
class Origin:
    """The file or topic of the events, with the facts that the draft needs.

    Attributes:
        format_description: the format of the file or topic.
        namespace: the pipeline's namespace, or None for the default.
        topic: the existing topic, or None if events will be sent.
        zone_assumed: whether the time zone is the default, because the user named none.
        envelope: the envelope around each event, as in `source.format.envelope`.
    """

    label: str
    format_description: str
    name: str
    zone: str
    zone_assumed: bool = False
    namespace: str | None = None
    topic: str | None = None
    hints: Sequence[str] = ()
    envelope: str = "none"


class NothingFound(Exception):
    """The error if no pipeline can be drafted from the sample."""


def draft(sample: Sample, origin: Origin, now_ms: int) -> str:
    """Return the YAML of a valid pipeline for sampled events.

    Raises:
        NothingFound: there is no event, or no member of the events can become a field.
    """
    if not sample.events:
        broken = f"; {sample.broken:,} {_broken_description(origin)}" if sample.broken else ""
        remedy = "; check the format, and --encoding if it is not UTF-8" if sample.broken else ""
        what = "event" if origin.envelope == "none" else f"event in the envelope {origin.envelope} (deletes are none)"
        raise NothingFound(f"{origin.label} has no {what}{broken}; name a file or topic with at least one{remedy}")
    fields = _draft_fields(sample, origin)
    if not any(field.type for field in fields):
        raise NothingFound(
            f"{origin.label}: no member of its events can become a field; name a file or topic with other events"
        )
    choices = choose([field for field in fields if field.type], sample.events, now_ms)
    text = "\n".join([*_head(sample, origin), *_source(fields, choices, origin), *_aggregations(choices, origin), ""])
    _assert_valid(text, origin)
    return text


def _draft_fields(sample: Sample, origin: Origin) -> list[FieldDraft]:
    names = field_names([column.steps for column in sample.columns])
    drafts = [
        draft_field(name, column, sample.events, origin.zone)
        for name, column in zip(names, sample.columns, strict=True)
    ]
    return [field if field.type else replace(field, note=f"{field.note}: left out") for field in drafts]


def _assert_valid(text: str, origin: Origin) -> None:
    topics = (origin.topic,) if origin.topic else ()
    for document in load_documents(text):
        faults = check_document(document, TopicLimits(readable_topics=topics))[1]
        if faults:
            raise AssertionError(f"the drafted pipeline is invalid: {faults[0]}")


def _broken_description(origin: Origin) -> str:
    if origin.envelope == "none":
        return "are not JSON objects of at most 1 MiB"
    return f"are not JSON objects in the envelope {origin.envelope}"


def _joined(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _MAX_LISTED:,} more" if len(paths) > _MAX_LISTED else ""
    return one_line(", ".join(paths[:_MAX_LISTED])) + more


def _head(sample: Sample, origin: Origin) -> Iterator[str]:
    sampled = "all" if sample.is_complete else "the first"
    what = f"{sampled} {sample.events:,} events of {one_line(origin.label)}"
    yield f"# Drafted by `tidemill init` from {what}: {origin.format_description}."
    if sample.broken:
        yield f"# {sample.broken:,} lines {_broken_description(origin)}: they become dead letters."
    if sample.left_out:
        yield f"# Left out, because these paths are invalid or overlap more frequent paths: {_joined(sample.left_out)}"
    if sample.surplus_paths:
        yield f"# Left out, because a draft has at most {MAX_FIELDS} fields: {_joined(sample.surplus_paths)}"
    yield "# Check the draft: types, event time, groups and metrics are guesses. Then:"
    for hint in origin.hints:
        yield f"#   {hint}"
    yield f"apiVersion: {API_VERSION}"
    yield f"kind: {KIND}"
    namespace = f", namespace: {origin.namespace}" if origin.namespace else ""
    yield f"metadata: {{name: {_text(origin.name)}{namespace}}}"


def _source(fields: Sequence[FieldDraft], choices: Choices, origin: Origin) -> Iterator[str]:
    yield "spec:"
    yield "  source:"
    if origin.topic is not None:
        yield f"    topic: {_flow({'name': origin.topic, 'managed': False})}  # the topic is only read, never altered"
    else:
        yield "    topic: {partitions: 1}  # can be increased later, but not reduced; limits the number of processors"
    if origin.envelope != "none":
        yield f"    format: {{envelope: {origin.envelope}}}  # the fields describe the event inside the envelope"
    yield "    fields:"
    if origin.zone_assumed and any(field.form is not None and field.form.local for field in fields):
        yield f"      # Times without a zone are read as {origin.zone}: correct a wrong `zone`."
    time_field = choices.event_time.field
    for field in fields:
        yield _field(field, required=time_field is not None and field.name == time_field.name, zone=origin.zone)
    if choices.group is not None and origin.topic is None:
        yield f"    key: {choices.group.name}  # equal keys go to the same partition; `key` cannot be changed later"
    yield from _event_time(choices, origin)


def _field(field: FieldDraft, *, required: bool, zone: str) -> str:
    remark = _remark(field)
    if not field.type:
        return f"      # {one_line('.'.join(map(str, field.column.steps)))}: {remark}"
    spec: dict[str, Any] = {"name": field.name, "type": field.type}
    if field.column.steps != (field.name,):
        spec["path"] = _path(field)
    if field.form is not None:
        if field.form.format is not None:
            spec["format"] = field.form.format
        if field.form.local and (field.form.format is None or field.form.format not in UNITS):
            spec["zone"] = zone
    if required:
        spec["required"] = True
    return f"      - {_flow(spec)}" + (f"  # {remark}" if remark else "")


def _path(field: FieldDraft) -> Any:
    steps = field.column.steps
    if all(isinstance(step, str) and _PLAIN_PATH.fullmatch(step) for step in steps):
        text = ".".join(map(str, steps))
        if read_path(text) == steps:
            return text
    return list(steps)


def _remark(field: FieldDraft) -> str:
    parts = []
    if field.type:
        examples = list(dict.fromkeys(map(_example, list(field.column.distinct)[: _EXAMPLES * 4])))[:_EXAMPLES]
        parts.append(" · ".join(each for each in examples if each))
    if field.empty:
        parts.append(f"{field.empty:,} without a value")
    if field.misfits:
        parts.append(f"{field.misfits:,} with another form would be dead letters, such as {_example(field.misfit)}")
    return "; ".join(part for part in (*parts, field.note) if part)


def _example(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, bool | tuple) else str(value)
    shown = one_line(text.strip())
    return shown if len(shown) <= _EXAMPLE_CHARACTERS else shown[: _EXAMPLE_CHARACTERS - 1] + "…"


def _event_time(choices: Choices, origin: Origin) -> Iterator[str]:
    time = choices.event_time
    if time.field is None:
        yield "    # No field has the event's time, so the timestamp of the Kafka record is used."
        yield "    eventTime: {maxDisorder: 5s}"
        return
    if time.future_events:
        yield f"    # {time.future_events:,} times are in the future: such events become dead letters; see maxFuture."
    later = ", which delays the closing of windows" if time.disorder_ms > _HOUR_MS else ""
    yield f"    # In the sample, events are at most {format_ms(time.disorder_ms)} out of order{later}."
    settings = {"field": time.field.name, "maxDisorder": format_ms(time.disorder_ms)}
    if time.advance_ms > DAY_MS:
        settings["maxAdvance"] = format_ms(time.advance_ms)
    yield f"    eventTime: {_flow(settings)}"


def _aggregations(choices: Choices, origin: Origin) -> Iterator[str]:
    window = {"type": "tumbling", "size": format_ms(choices.event_time.window_ms)}
    if choices.event_time.window_ms >= 60_000:
        window["grace"] = format_ms(min(60_000, round_up_ms(choices.event_time.window_ms / 60)))
    yield "  aggregations:"
    if choices.group is not None:
        yield from _aggregation(f"by_{choices.group.name}"[:41], [choices.group.name], window, choices, origin)
    yield from _aggregation("overall" if choices.group is not None else "all_events", [], window, choices, origin)


def _aggregation(
    name: str, groups: Sequence[str], window: Mapping[str, Any], choices: Choices, origin: Origin
) -> Iterator[str]:
    yield f"    - name: {name}"
    yield f"      groupBy: {_flow(list(groups))}" + ("" if groups else "  # one group of all events")
    yield f"      window: {_flow(window)}"
    if origin.topic is None:
        yield "      latePolicy: reopen  # late events are added to closed windows, which are published again"
    if origin.topic is None or choices.event_time.span_ms > _LONG_SPAN_MS:
        yield f"      retention: {_LONG_RETENTION}  # older windows are deleted; age is measured from the newest event"
    yield "      metrics:"
    used_names: set[str] = set(groups)
    for metric in choices.metrics:
        if metric["name"] not in used_names:
            used_names.add(metric["name"])
            yield f"        - {_flow(metric)}"


def _flow(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return _text(value)
        case list() | tuple():
            return f"[{', '.join(map(_flow, value))}]"
        case dict():
            return "{" + ", ".join(f"{key}: {_flow(member)}" for key, member in value.items()) + "}"
    return str(value)


def _text(text: str) -> str:
    plain = _PLAIN.fullmatch(text) is not None and text.lower() not in YAML_WORDS and text == text.strip()
    return text if plain else json.dumps(text, ensure_ascii=not text.isprintable())
