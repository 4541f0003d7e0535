"""Tests of schemas from Apicurio's registry, which offers the interface of Confluent's registry as `ccompat`.

The tests run a real Apicurio, which is downloaded from Maven Central once (142 MB).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from bench import free_ports
from tidemill_contract.resource.kinds.formats import RegistrySpec
from tidemill_operator.laptop.servers.kafka_jars import find_java
from tidemill_operator.processes.files import locked
from tidemill_processor.formats.protobuf_types import ProtobufSchema
from tidemill_processor.formats.registry import Registry, RegistryUnavailableError, UnknownSchemaError
from waiting import eventually

pytestmark = [pytest.mark.comparison, pytest.mark.slow]

VERSION = "2.6.13.Final"
PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"
ORDER = {"type": "record", "name": "Order", "fields": [{"name": "id", "type": "long"}]}


def installed() -> Path:
    """Return the folder of Apicurio. Download Apicurio if the folder does not exist."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidemill"
    folder = cache / f"apicurio-{VERSION}"
    with locked(cache / f"apicurio-{VERSION}.lock", wait_seconds=600):
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            artifact = f"-Dartifact=io.apicurio:apicurio-registry-app:{VERSION}:tar.gz:all"
            command = ["mvn", "-q", "-B", PLUGIN, artifact, f"-DoutputDirectory={partial}"]
            subprocess.run(command, check=True, timeout=600)
            (archive,) = partial.glob("*.tar.gz")
            with tarfile.open(archive) as packed:
                packed.extractall(partial, filter="data")
            archive.unlink()
            partial.rename(folder)
    return folder


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    (port,) = free_ports(1)
    jar = installed() / f"apicurio-registry-app-{VERSION}-runner.jar"
    options = ["-Xmx400m", "-Dquarkus.http.host=127.0.0.1", f"-Dquarkus.http.port={port}"]
    with (tmp_path_factory.mktemp("apicurio") / "apicurio.log").open("wb") as log:
        process = subprocess.Popen([find_java(os.environ), *options, "-jar", str(jar)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/apis/ccompat/v7"

    def answers() -> bool:
        try:
            with SchemaRegistryClient({"url": address, "max.retries": 0}) as client:
                return client.get_subjects() == []
        except Exception:  # Apicurio still starts, and its HTTP server refuses connections.
            return False

    try:
        eventually(answers, seconds=240, what="Apicurio answers")
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_schemas_are_read_and_an_unknown_schema_raises_an_error(url: str) -> None:
    with SchemaRegistryClient({"url": url}) as client, closing(Registry(RegistrySpec(url=url))) as registry:
        serialize = AvroSerializer(client, json.dumps(ORDER))
        raw = serialize({"id": 1}, SerializationContext("orders", MessageField.VALUE))
        assert raw is not None
        schema = registry.schema(int.from_bytes(raw[1:5]))
        assert (json.loads(schema.text), schema.kind) == (ORDER, "AVRO")
        with pytest.raises(UnknownSchemaError):
            registry.schema(4_711)
    wrong = Registry(RegistrySpec(url=url.replace("ccompat", "elsewhere")))
    with closing(wrong), pytest.raises(RegistryUnavailableError):
        wrong.schema(4_711)


def test_protobuf_schemas_are_read_only_if_registered_as_descriptors(url: str) -> None:
    """Apicurio returns a Protobuf schema in the form in which it was registered.

    Python's serializer registers descriptors, and other serializers register texts.
    """
    file = FileDescriptorProto(name="order.proto", syntax="proto3")
    file.message_type.add(name="Order").field.add(name="id", number=1, type=3, label=1)
    serialized = base64.b64encode(file.SerializeToString()).decode()
    opened = closing(Registry(RegistrySpec(url=url), form="serialized"))
    with SchemaRegistryClient({"url": url}) as client, opened as registry:
        number = client.register_schema("descriptors", Schema(serialized, "PROTOBUF"))
        order = ProtobufSchema(registry.schema(number)).message((0,))
        assert order(id=7).SerializeToString() == b"\x08\x07"
        number = client.register_schema("texts", Schema('syntax = "proto3"; message A { int64 b = 1; }', "PROTOBUF"))
        with pytest.raises(ValueError, match="the text of the"):
            ProtobufSchema(registry.schema(number))
