"""Plan the Connect workers that the operator runs in a namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tidemill_contract.names import CONNECT_TOPICS, CONNECT_WORKERS, connect_group_id
from tidemill_operator.errors import Reason, TidemillError
from tidemill_operator.plan.model import Topic
from tidemill_operator.settings import Platform

NAME, PORT = CONNECT_WORKERS, 8083
ADDRESS_VARIABLE = "POD_IP"
SECRETS_DIR, CONFIG_DIR, PLUGINS_DIR = "/etc/tidemill/secrets", "/etc/tidemill/connect", "/opt/kafka/plugins"
PROPERTIES, LOGGING = "worker.properties", "log4j2.properties"
WARNINGS_TO_CONSOLE = """\
status = error
rootLogger.level = WARN
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{ISO8601} %p %c{1} %m%n
"""
"""The log4j configuration. It hides INFO messages, because they contain the configs of connectors."""
_PROVIDERS = "org.apache.kafka.common.config.provider"
_JSON = "org.apache.kafka.connect.json.JsonConverter"
_CONFIGS, _OFFSETS, _STATUSES = CONNECT_TOPICS
# The names and partition counts of Connect's own topics. Connect requires one partition for its config topic.
_TOPICS = {"config": (_CONFIGS, 1), "offset": (_OFFSETS, 25), "status": (_STATUSES, 5)}
_MECHANISMS = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_PEM = {
    "ssl.ca.pem": ("ssl.truststore.type", "ssl.truststore.certificates"),
    "ssl.certificate.pem": ("ssl.keystore.type", "ssl.keystore.certificate.chain"),
    "ssl.key.pem": ("ssl.keystore.type", "ssl.keystore.key"),
}
_SUPPORTED_SETTINGS = {"security.protocol", "ssl.key.password", "ssl.endpoint.identification.algorithm", *_PEM}
_SUPPORTED_SETTINGS |= {"sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password"}


def needs_workers(document: Mapping[str, Any]) -> bool:
    """Return True if the spec of a resource has connectors.

    The spec may be invalid.
    """
    source = (document.get("spec") or {}).get("source")
    return bool(source.get("connectors")) if isinstance(source, dict) else False


def topics(namespace: str, platform: Platform) -> tuple[Topic, ...]:
    """Return the topics in which the Connect workers of a namespace store their state."""
    return tuple(
        Topic(
            name=f"{connect_group_id(namespace, platform.cluster_id)}-{kind}",
            partitions=partitions,
            replication_factor=platform.replication_factor,
            config={"cleanup.policy": "compact"},
            enforces_replication=False,
        )
        for kind, partitions in _TOPICS.values()
    )


def common_properties(name: str, *, brokers: str, replicas: int, partitions: Mapping[str, int]) -> dict[str, str]:
    """Return the properties of every worker that Tidemill starts."""
    config = {
        "bootstrap.servers": brokers,
        "group.id": name,
        "key.converter": _JSON,
        "value.converter": _JSON,
        # One transaction commits records and positions, so that no record is repeated after a worker is killed.
        "exactly.once.source.support": "enabled",
    }
    for setting, (kind, _) in _TOPICS.items():
        config[f"{setting}.storage.topic"] = f"{name}-{kind}"
        config[f"{setting}.storage.replication.factor"] = str(replicas)
        if setting != "config":
            config[f"{setting}.storage.partitions"] = str(partitions[setting])
    return config


def properties(namespace: str, platform: Platform, client: Mapping[str, Any]) -> str:
    """Return the text of the worker's properties file.

    Raises:
        TidemillError: a setting cannot be translated for Java.
    """
    config = {
        **common_properties(
            connect_group_id(namespace, platform.cluster_id),
            brokers=platform.kafka_brokers,
            replicas=platform.replication_factor,
            partitions={setting: partitions for setting, (_, partitions) in _TOPICS.items()},
        ),
        "listeners": f"http://0.0.0.0:{PORT}",
        # Workers forward requests to each other by address, because the name of a pod cannot be resolved.
        "rest.advertised.host.name": f"${{env:{ADDRESS_VARIABLE}}}",
        "plugin.path": PLUGINS_DIR,
        "plugin.discovery": "hybrid_warn",
        "config.providers": "directory,env",
        "config.providers.directory.class": f"{_PROVIDERS}.DirectoryConfigProvider",
        "config.providers.directory.param.allowed.paths": SECRETS_DIR,
        "config.providers.env.class": f"{_PROVIDERS}.EnvVarConfigProvider",
        "config.providers.env.param.allowlist.pattern": ADDRESS_VARIABLE,
    }
    login = java_client(client)
    for prefix in ("", "producer.", "consumer.", "admin."):
        config |= {f"{prefix}{key}": value for key, value in login.items()}
    return "".join(f"{key}={_escaped(value)}\n" for key, value in config.items())


def java_client(client: Mapping[str, Any]) -> dict[str, str]:
    """Translate librdkafka's security settings to settings of Kafka's Java client.

    Raises:
        TidemillError: Kafka's Java client has no equivalent for a setting or a value.
    """
    for key in client:
        if key.startswith(("ssl.", "sasl.", "enable.ssl", "enable.sasl")) and key not in _SUPPORTED_SETTINGS:
            raise _untranslated(key, "use settings such as ssl.ca.pem or sasl.username")
    protocol = str(client.get("security.protocol", "plaintext")).upper()
    config = {"security.protocol": protocol} if protocol != "PLAINTEXT" else {}
    if protocol.startswith("SASL_"):
        config |= _login(client)
    if protocol.endswith("SSL"):
        for key, (kind, setting) in _PEM.items():
            if key in client:
                config |= {kind: "PEM", setting: str(client[key])}
        if "ssl.key.password" in client:
            config["ssl.key.password"] = str(client["ssl.key.password"])
        if client.get("ssl.endpoint.identification.algorithm") == "none":
            config["ssl.endpoint.identification.algorithm"] = ""
    return config


def _login(client: Mapping[str, Any]) -> dict[str, str]:
    mechanism = str(client.get("sasl.mechanism", client.get("sasl.mechanisms", ""))).upper()
    if mechanism not in _MECHANISMS:
        raise _untranslated("sasl.mechanism", f"{mechanism[:40]!r} is none of {', '.join(_MECHANISMS)}")
    user, password = (_quoted(str(client.get(f"sasl.{part}", ""))) for part in ("username", "password"))
    jaas = f"{_MECHANISMS[mechanism]} required username={user} password={password};"
    return {"sasl.mechanism": mechanism, "sasl.jaas.config": jaas}


def _untranslated(key: str, why: str) -> TidemillError:
    message = f"TIDEMILL_WORKLOAD_KAFKA_CONFIG: {key} cannot be translated for Kafka Connect: {why}"
    return TidemillError(
        Reason.NOT_SUPPORTED, message, "change the setting, or run Kafka Connect yourself and set connect.url"
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    text = "".join(sign if " " <= sign <= "~" else "".join(f"\\u{unit:04x}" for unit in _units(sign)) for sign in text)
    return f"\\{text}" if text.startswith(" ") else text


def _units(sign: str) -> list[int]:
    data = sign.encode("utf-16-be")
    return [int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2)]
