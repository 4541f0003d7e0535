"""Tests of API keys: which headers and scopes pass, and when changes of the key file take effect."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tidemill_chassis.auth import Authenticator, Forbidden, Unauthorized
from tidemill_contract.runtime import PipelineConfig, WorkloadSettings

SPEC: dict[str, Any] = {
    "source": {"fields": [{"name": "v", "type": "number"}]},
    "aggregations": [
        {"name": "a", "window": {"type": "tumbling", "size": "1m"}, "metrics": [{"name": "n", "function": "count"}]}
    ],
}


def pipeline(name: str = "p", required: bool | None = True) -> PipelineConfig:
    spec = SPEC | {"auth": {"required": required}}
    document = {"namespace": "default", "name": name, "generation": 1, "spec": spec, "aggregations": [{"name": "a"}]}
    return PipelineConfig.from_json(json.dumps(document))


def key(key_id: str, secret: str, *scopes: str) -> dict[str, Any]:
    return {"id": key_id, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": scopes}


def write(directory: Path, *keys: dict[str, Any], name: str = "p", text: str | None = None) -> None:
    (directory / name).mkdir(exist_ok=True)
    new = directory / name / "new"
    new.write_text(json.dumps({"keys": keys}) if text is None else text)
    os.replace(new, directory / name / "api-keys.json")


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def authenticator(tmp_path: Path, time: Time) -> Authenticator:
    write(tmp_path, key("w1", "s_e_c-ret", "events:append"), key("r1", "other", "query:read"))
    return Authenticator(WorkloadSettings(secrets_dir=tmp_path), clock=time)


@pytest.mark.parametrize(
    ("header", "scope"),
    [
        ("Bearer tm_w1_s_e_c-ret", "events:append"),
        ("bearer  tm_w1_s_e_c-ret ", "events:append"),
        ("Bearer tm_r1_other", "query:read"),
    ],
    ids=["a secret may hold underscores", "the scheme's case and blanks do not matter", "another key"],
)
def test_a_key_that_has_the_scope_is_accepted(authenticator: Authenticator, header: str, scope: str) -> None:
    assert authenticator.check(pipeline(), header, scope) is None


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer tm_w1",
        "Bearer tm_w1_",
        "Bearer tm__s_e_c-ret",
        "Bearer tm_w1_wrong",
        "Bearer tm_r1_s_e_c-ret",
        "Bearer tm_w2_s_e_c-ret",
        "Basic tm_w1_s_e_c-ret",
        "tm_w1_s_e_c-ret",
        "Bearer xx_w1_s_e_c-ret",
        "Bearer tm_w1_s_e_c-reté",
        "Bearer tm_w1_\udcff",
        "Bearer tm_w1_" + "x" * 10_000,
    ],
)
def test_a_header_without_a_known_key_is_unauthorized_and_its_secret_is_not_repeated(
    authenticator: Authenticator, header: str | None
) -> None:
    with pytest.raises(Unauthorized, match="Authorization: Bearer") as raised:
        authenticator.check(pipeline(), header, "events:append")
    assert "s_e_c" not in str(raised.value)


def test_a_key_without_the_scope_is_forbidden(authenticator: Authenticator) -> None:
    with pytest.raises(Forbidden, match=r"w1 lacks the scope query:read; it has events:append"):
        authenticator.check(pipeline(), "Bearer tm_w1_s_e_c-ret", "query:read")


def test_a_key_of_another_pipeline_is_unauthorized(authenticator: Authenticator, tmp_path: Path) -> None:
    write(tmp_path, key("w1", "theirs", "events:append"), name="q")
    with pytest.raises(Unauthorized):
        authenticator.check(pipeline("q"), "Bearer tm_w1_s_e_c-ret", "events:append")


@pytest.mark.parametrize("header", [None, "Bearer nonsense"])
def test_every_header_passes_if_no_key_is_required(authenticator: Authenticator, header: str | None) -> None:
    assert authenticator.check(pipeline(required=False), header, "events:append") is None


def test_keys_are_required_if_the_config_sets_nothing_else(authenticator: Authenticator) -> None:
    with pytest.raises(Unauthorized):
        authenticator.check(pipeline(required=None), None, "events:append")


def test_every_key_is_unauthorized_if_the_key_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(Unauthorized):
        Authenticator(WorkloadSettings(secrets_dir=tmp_path)).check(pipeline(), "Bearer tm_w1_x", "events:append")


def test_an_unknown_key_id_without_a_scope_is_unauthorized(authenticator: Authenticator) -> None:
    """Unknown ids are compared with a placeholder hash of zeros, which must never count as a key."""
    with pytest.raises(Unauthorized):
        authenticator.check(pipeline(), "Bearer tm_x_y", "")


def test_changed_keys_take_effect_within_a_second(authenticator: Authenticator, tmp_path: Path, time: Time) -> None:
    old, new = "Bearer tm_w1_s_e_c-ret", "Bearer tm_w2_fresh"
    authenticator.check(pipeline(), old, "events:append")
    write(tmp_path, key("w2", "fresh", "events:append"))
    time.now += 0.9
    authenticator.check(pipeline(), old, "events:append")
    time.now += 0.1
    authenticator.check(pipeline(), new, "events:append")
    with pytest.raises(Unauthorized):
        authenticator.check(pipeline(), old, "events:append")


def test_removing_the_key_file_revokes_all_keys(authenticator: Authenticator, tmp_path: Path, time: Time) -> None:
    authenticator.check(pipeline(), "Bearer tm_r1_other", "query:read")
    (tmp_path / "p" / "api-keys.json").unlink()
    time.now += 1
    with pytest.raises(Unauthorized):
        authenticator.check(pipeline(), "Bearer tm_r1_other", "query:read")


def test_an_invalid_key_file_keeps_the_last_keys_and_its_secrets_are_not_logged(
    authenticator: Authenticator, tmp_path: Path, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    authenticator.check(pipeline(), "Bearer tm_r1_other", "query:read")
    write(tmp_path, text='{"keys": [{"id": "x", "sha256": "topsecret"')
    time.now += 1
    authenticator.check(pipeline(), "Bearer tm_r1_other", "query:read")
    assert "api-keys.json is not a file of API keys" in caplog.text
    assert "topsecret" not in caplog.text
