"""Create clients of kafka-python, for requests that confluent-kafka cannot make.

The import of kafka-python is deferred, because it takes 20 MiB of memory and nearly a second.
"""

from __future__ import annotations

import logging
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tidemill_operator.errors import Reason, TidemillError

_OPTION_NAMES = {
    "client.id": "client_id",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
}


@contextmanager
def open_admin_client(config: Mapping[str, Any], timeout_seconds: float, doing: str) -> Iterator[Any]:
    """Yield a `kafka.KafkaAdminClient`.

    Raises:
        TidemillError: Kafka does not answer.
    """
    import kafka

    from tidemill_operator.actuators.kafka.python_connections import Connections

    # kafka-python logs every failed connection, but the operator reports the errors itself.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    brokers = str(config["bootstrap.servers"])
    timeout = int(timeout_seconds * 1000)
    with ExitStack() as stack:

        def open_connections(**settings: Any) -> Any:
            connections = Connections(**settings)
            stack.callback(connections.close)
            return connections

        with translate_errors(doing, brokers):
            client = kafka.KafkaAdminClient(
                bootstrap_servers=brokers.split(","),
                request_timeout_ms=timeout,
                bootstrap_timeout_ms=timeout,
                kafka_client=open_connections,
                **_to_python_options(config),
            )
        stack.callback(client.close)
        yield client


@contextmanager
def translate_errors(doing: str, brokers: str) -> Iterator[None]:
    """Raise errors of kafka-python as TidemillError.

    Args:
        doing: what the request does. The error message begins with this text.
        brokers: addresses of the brokers, for the message.
    """
    from kafka import errors

    try:
        yield
    except errors.ClusterAuthorizationFailedError as error:
        remedy = "grant Alter on the cluster to the operator's Kafka user"
        raise TidemillError(Reason.REFUSED, f"{doing}: Kafka refuses ({error})", remedy) from error
    except errors.KafkaError as error:
        if isinstance(error, errors.BrokerResponseError) and not error.retriable:
            raise TidemillError(Reason.REFUSED, f"{doing}: Kafka refuses ({error})") from error
        raise TidemillError(Reason.UNREACHABLE, f"{doing}: Kafka at {brokers} does not answer ({error})") from error


def _to_python_options(config: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {_OPTION_NAMES[key]: value for key, value in config.items() if key in _OPTION_NAMES}
    for name in ("security_protocol", "sasl_mechanism"):
        if name in options:
            options[name] = str(options[name]).upper()
    if options.get("security_protocol", "").endswith("SSL"):
        options["ssl_context"] = _tls_context(config)
    return options


def _tls_context(config: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=config.get("ssl.ca.location"), cadata=config.get("ssl.ca.pem"))
    if config.get("ssl.endpoint.identification.algorithm") == "none":
        context.check_hostname = False
    if str(config.get("enable.ssl.certificate.verification", "true")).lower() == "false":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    password = config.get("ssl.key.password")
    if location := config.get("ssl.certificate.location"):
        context.load_cert_chain(location, config.get("ssl.key.location"), password)
    elif pem := config.get("ssl.certificate.pem"):
        # Python's ssl module reads client certificates from files only.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "client.pem"
            file.touch(mode=0o600)
            file.write_text(f"{pem}\n{config.get('ssl.key.pem', '')}\n")
            context.load_cert_chain(file, password=password)
    return context
