"""Add deadlines to the connections of kafka-python, and close its sockets after failures."""

from __future__ import annotations

import ssl
from typing import Any
from weakref import WeakSet

from kafka import errors
from kafka.net.compat import KafkaNetClient
from kafka.net.inet import KafkaNetSocket, create_connection
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.net.transport import KafkaSSLTransport, KafkaTCPTransport


class Connections(KafkaNetClient):  # type: ignore[misc]
    """Connections for the argument `kafka_client` of `kafka.KafkaAdminClient`."""

    def __init__(self, **settings: Any) -> None:
        net = NetworkSelector(**settings)
        super().__init__(net=net, manager=_Manager(net, **settings))

    def close(self, node_id: Any = None) -> None:
        """Close the connections to one broker, or all connections."""
        if node_id is None:
            self._net.stop()  # stop the network thread before the sockets are closed
        super().close(node_id)
        if node_id is None:
            for sock in self._manager.sockets:
                sock.close()


class _Manager(KafkaConnectionManager):  # type: ignore[misc]
    def __init__(self, net: NetworkSelector, **settings: Any) -> None:
        super().__init__(net, **settings)
        self.sockets: WeakSet[Any] = WeakSet()

    async def _build_transport(self, node: Any, timeout_at: float | None = None) -> Any:
        sock = await create_connection(
            self._net, node.host, node.port, self.config["socket_options"], f"{_Socket.SCHEMES[0]}:", timeout_at
        )
        self.sockets.add(sock)
        if not self.ssl_enabled:
            return KafkaTCPTransport(self._net, sock, host=node.host)
        transport = _Tls(self._net, sock, host=node.host, ssl_context=self.config["ssl_context"])
        self.sockets.add(transport.socket)
        try:
            await transport.handshake_until(timeout_at)
        except (OSError, errors.KafkaError) as error:
            transport.abort()
            raise errors.KafkaConnectionError(f"TLS handshake: {error}") from error
        return transport


class _Socket(KafkaNetSocket):  # type: ignore[misc]
    """A socket that is closed if the broker does not answer."""

    SCHEMES = ("direct",)

    async def sock_connect(self, net: Any, sock: Any, sockaddr: Any, timeout_at: float | None = None) -> Any:
        try:
            return await super().sock_connect(net, sock, sockaddr, timeout_at=timeout_at)
        except BaseException:  # includes cancellation
            sock.close()
            raise


class _Tls(KafkaSSLTransport):  # type: ignore[misc]
    @property
    def socket(self) -> Any:
        return self._sock

    async def handshake_until(self, timeout_at: float | None) -> None:
        while True:
            try:
                self._sock.do_handshake()
                return
            except ssl.SSLWantReadError:
                await self._net.wait_read(self._sock, timeout_at)
            except ssl.SSLWantWriteError:
                await self._net.wait_write(self._sock, timeout_at)
