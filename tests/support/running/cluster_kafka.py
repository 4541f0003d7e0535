"""A second Kafka in a Kubernetes cluster: one broker with TLS, SCRAM logins and permissions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kube.pki import Authority
from running.secured_kafka import MODULE, pkcs8

PORT = 9095
_ADMIN, _ADMIN_PASSWORD = "admin", "only the administrator knows it"
_FOLDER = "/etc/kafka"
# The broker can be stopped and started within its container, so its data survives.
_START = """\
set -eu
java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --ignore-formatted -t AbCdEfGhIjKlMnOpQrStUw \
  -c /etc/kafka/server.properties {logins}
while true; do
  while [ -e /tmp/stopped ]; do sleep 0.2; done
  java -Xms64m -Xmx256m -XX:+UseSerialGC -cp '/opt/kafka/libs/*' kafka.Kafka /etc/kafka/server.properties &
  echo $! > /tmp/pid
  wait $! || true
done
"""
_STOP = "touch /tmp/stopped; kill $(cat /tmp/pid); while kill -0 $(cat /tmp/pid) 2>/dev/null; do sleep 0.1; done"
_PROPERTIES = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.quorum.voters": "1@127.0.0.1:9093",
    "listeners": f"LOGIN://:{PORT},INTERNAL://127.0.0.1:9094,CONTROLLER://127.0.0.1:9093",
    "listener.security.protocol.map": "LOGIN:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "INTERNAL",
    "log.dirs": "/var/lib/kafka/data",
    "auto.create.topics.enable": "false",
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "group.initial.rebalance.delay.ms": "0",
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    # Only the broker itself uses the listeners without a login.
    "super.users": f"User:{_ADMIN};User:ANONYMOUS",
    "ssl.keystore.type": "PEM",
    "listener.name.login.sasl.enabled.mechanisms": "SCRAM-SHA-512",
    "listener.name.login.scram-sha-512.sasl.jaas.config": f"{MODULE.format('scram.ScramLoginModule')};",
}
# These programs run in the operator's pod, because the host cannot resolve the broker's name.
_CREATE = """\
import json, sys
from confluent_kafka.admin import AdminClient, NewTopic
admin = AdminClient(json.loads(sys.argv[1]))
future, = admin.create_topics([NewTopic(sys.argv[2], int(sys.argv[3]), 1)]).values()
future.result(30)
"""
_DELETE = """\
import json, sys
from confluent_kafka.admin import AdminClient
admin = AdminClient(json.loads(sys.argv[1]))
future, = admin.delete_topics([sys.argv[2]]).values()
future.result(30)
"""
_GRANT = """\
import json, sys
from confluent_kafka.admin import (
    AclBinding, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType,
)
user, topics, groups = sys.argv[2:]
bindings = [
    AclBinding(kind, prefix, ResourcePatternType.PREFIXED, f"User:{user}", "*", operation, AclPermissionType.ALLOW)
    for kind, prefix in ((ResourceType.TOPIC, topics), (ResourceType.GROUP, groups))
    for operation in (AclOperation.DESCRIBE, AclOperation.READ)
]
admin = AdminClient(json.loads(sys.argv[1]))
for future in admin.create_acls(bindings).values():
    future.result(30)
"""
_DENY = """\
import json, sys
from confluent_kafka.admin import (
    AclBinding, AclBindingFilter, AclOperation, AclPermissionType, AdminClient, ResourcePatternType, ResourceType,
)
user, topic, deny = sys.argv[2:]
admin = AdminClient(json.loads(sys.argv[1]))
rule = (
    ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, f"User:{user}", "*", AclOperation.ALL,
    AclPermissionType.DENY,
)
done = admin.create_acls([AclBinding(*rule)]) if deny else admin.delete_acls([AclBindingFilter(*rule)])
for future in done.values():
    future.result(30)
"""
_SEND = """\
import json, sys
from confluent_kafka import Producer
producer = Producer({**json.loads(sys.argv[1]), "enable.idempotence": True})
for event in json.loads(sys.argv[3]):
    producer.produce(sys.argv[2], json.dumps(event).encode())
if left := producer.flush(60):
    raise SystemExit(f"{left} events are not written")
"""


class ClusterKafka:
    """The broker, in an existing namespace.

    Args:
        kubectl: runs kubectl.
        in_operator: runs a command in the operator's pod.
        namespace: the namespace.
        image: an image with Java and the broker's jars, such as that of the chart `dev-stack`.
        folder: a folder for the certificates.
        logins: passwords by user.

    Attributes:
        address: the address of the broker for clients in the cluster.
    """

    def __init__(
        self,
        kubectl: Callable[..., str],
        in_operator: Callable[..., str],
        *,
        namespace: str,
        image: str,
        folder: Path,
        logins: dict[str, str],
    ) -> None:
        self._kubectl, self._in_operator = kubectl, in_operator
        self._namespace, self._image = namespace, image
        self._logins = {_ADMIN: _ADMIN_PASSWORD, **logins}
        self._host = f"kafka.{namespace}.svc"
        self.address = f"{self._host}:{PORT}"
        self._authority = Authority(folder)
        self._server = self._authority.issue("server", common_name="broker", names=[self._host])

    @property
    def certificate(self) -> str:
        """The certificate of the authority, in PEM."""
        return self._authority.certificate.read_text()

    def start(self) -> None:
        """Create the broker, and wait until it listens."""
        for document in (self._files(), _service(self._namespace), self._pod()):
            self._kubectl("apply", "--filename", "-", stdin=json.dumps(document))
        self._wait("--for=condition=Ready")

    def stop(self) -> None:
        """Stop the broker's process, and keep its data."""
        self._kubectl("exec", "kafka", "--namespace", self._namespace, "--", "sh", "-c", _STOP)
        self._wait("--for=condition=Ready=false")

    def resume(self) -> None:
        """Start the broker again."""
        self._kubectl("exec", "kafka", "--namespace", self._namespace, "--", "sh", "-c", "rm /tmp/stopped")
        self._wait("--for=condition=Ready")

    def create(self, topic: str, partitions: int) -> None:
        """Create a topic."""
        self._run(_CREATE, topic, str(partitions))

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        self._run(_DELETE, topic)

    def grant(self, user: str, *, topics: str, groups: str) -> None:
        """Allow a user to read topics and to use consumer groups with these prefixes."""
        self._run(_GRANT, user, topics, groups)

    def deny(self, user: str, topic: str) -> None:
        """Forbid a user to use a topic."""
        self._run(_DENY, user, topic, "yes")

    def allow(self, user: str, topic: str) -> None:
        """Undo `deny`."""
        self._run(_DENY, user, topic, "")

    def send(self, topic: str, events: Sequence[dict[str, Any]]) -> None:
        """Write events, and wait until the broker has them."""
        self._run(_SEND, topic, json.dumps(events))

    def _run(self, code: str, *arguments: str) -> None:
        settings = {
            "bootstrap.servers": self.address,
            "security.protocol": "SASL_SSL",
            "ssl.ca.pem": self.certificate,
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": _ADMIN,
            "sasl.password": self._logins[_ADMIN],
            "log_level": 0,
        }
        self._in_operator("python", "-c", code, json.dumps(settings), *arguments)

    def _wait(self, condition: str) -> None:
        self._kubectl("wait", "pod", "kafka", "--namespace", self._namespace, condition, "--timeout=180s")

    def _files(self) -> dict[str, Any]:
        pem = {
            "ssl.keystore.certificate.chain": self._server.certificate.read_text(),
            "ssl.keystore.key": pkcs8(self._server.key),
        }
        properties = {
            **_PROPERTIES,
            "advertised.listeners": f"LOGIN://{self.address},INTERNAL://127.0.0.1:9094",
            **{key: text.replace("\n", "\\n") for key, text in pem.items()},
        }
        logins = " ".join(
            f"--add-scram 'SCRAM-SHA-512=[name={user},password={password}]'" for user, password in self._logins.items()
        )
        files = {
            "start.sh": _START.format(logins=logins),
            "server.properties": "".join(f"{key}={value}\n" for key, value in properties.items()),
        }
        metadata = {"name": "kafka", "namespace": self._namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files}

    def _pod(self) -> dict[str, Any]:
        """Return a pod that namespaces with Pod Security `restricted` accept."""
        mounts = {"config": _FOLDER, "data": "/var/lib/kafka", "tmp": "/tmp"}  # noqa: S108 - in the container
        container = {
            "name": "kafka",
            "image": self._image,
            "imagePullPolicy": "Never",
            "command": ["sh", f"{_FOLDER}/start.sh"],
            "ports": [{"name": "kafka", "containerPort": PORT}],
            "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
            "resources": {"requests": {"cpu": "20m", "memory": "256Mi"}},
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            },
            "volumeMounts": [{"name": name, "mountPath": path} for name, path in mounts.items()],
        }
        user = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        spec = {
            "containers": [container],
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {**user, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [
                {"name": "config", "secret": {"secretName": "kafka"}},
                {"name": "data", "emptyDir": {}},
                {"name": "tmp", "emptyDir": {}},
            ],
        }
        metadata = {"name": "kafka", "namespace": self._namespace, "labels": {"app": "kafka"}}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _service(namespace: str) -> dict[str, Any]:
    spec = {"selector": {"app": "kafka"}, "ports": [{"name": "kafka", "port": PORT, "targetPort": "kafka"}]}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kafka", "namespace": namespace},
        "spec": spec,
    }
