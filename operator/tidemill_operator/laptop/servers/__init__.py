"""Kafka, Postgres and Redis on one machine, started unless the environment names their addresses."""

from tidemill_operator.addresses import PostgresAddress
from tidemill_operator.laptop.servers.errors import ServerError
from tidemill_operator.laptop.servers.server import Server
from tidemill_operator.laptop.servers.start import Servers, start_servers

__all__ = ["PostgresAddress", "Server", "ServerError", "Servers", "start_servers"]
