"""Tests of the choice of local servers, without any server: addresses, found programs and error messages."""

from __future__ import annotations

import os
from pathlib import Path

import psycopg.conninfo
import pytest

from tidemill_operator.laptop.servers import PostgresAddress, ServerError, Servers, start_servers
from tidemill_operator.laptop.servers.kafka_jars import KAFKA_VERSION, find_jars, find_java
from tidemill_operator.laptop.servers.redis import redis_server
from tidemill_operator.processes.ports import Ports

ADDRESS = PostgresAddress("db.example", 6432, "tide mill", "ad@min", "p:/?#%w", sslmode="require")


def test_a_postgres_address_is_read_from_its_url_by_us_and_by_libpq() -> None:
    assert PostgresAddress.from_url(ADDRESS.url) == ADDRESS
    assert psycopg.conninfo.conninfo_to_dict(ADDRESS.url) == {
        "host": "db.example",
        "port": "6432",
        "dbname": "tide mill",
        "user": "ad@min",
        "password": "p:/?#%w",
        "sslmode": "require",
    }


def test_a_postgres_password_is_not_shown() -> None:
    """Neither the representation nor the public URL contains the password."""
    assert all(
        ADDRESS.password not in text for text in (repr(ADDRESS), ADDRESS.public_url, repr(Servers(postgres=ADDRESS)))
    )


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("127.0.0.1:5432", id="no scheme"),
        pytest.param("mysql://u:p@h/d", id="another database"),
        pytest.param("postgresql://h/d", id="no login"),
        pytest.param("postgresql:///d", id="no host"),
    ],
)
def test_a_wrong_postgres_url_is_refused_with_its_form(url: str) -> None:
    with pytest.raises(ValueError, match="postgresql://USER:PASSWORD@HOST:PORT/DATABASE"):
        PostgresAddress.from_url(url)


@pytest.mark.parametrize(
    ("needs", "remedy"),
    [("kafka", "TIDEMILL_KAFKA_BROKERS"), ("redis", "TIDEMILL_REDIS_URL")],
)
def test_a_missing_program_is_named_with_its_remedy(tmp_path: Path, needs: str, remedy: str) -> None:
    """The message names the program to install, and the setting to use instead."""
    environ = {"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    with pytest.raises(ServerError, match=remedy):
        start_servers(tmp_path / "data", environ=environ, needs=(needs,))


def test_jars_come_from_the_first_place_that_has_them(tmp_path: Path) -> None:
    """KAFKA_HOME counts most, then an installation on the PATH, then the cache. Maven is used only without these."""
    home, installed, cache = tmp_path / "home", tmp_path / "installed", tmp_path / "cache"
    cached = cache / "tidemill" / f"kafka-{KAFKA_VERSION}"
    for folder in (home / "libs", installed / "libs", installed / "bin", cached):
        folder.mkdir(parents=True)
    script = installed / "bin" / "kafka-server-start.sh"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    environ = {"PATH": "", "XDG_CACHE_HOME": str(cache)}
    assert find_jars(environ) == cached
    environ["PATH"] = str(script.parent)
    assert find_jars(environ) == installed / "libs"
    environ["KAFKA_HOME"] = str(home)
    assert find_jars(environ) == home / "libs"
    environ["KAFKA_HOME"] = str(tmp_path / "wrong")
    with pytest.raises(ServerError, match="KAFKA_HOME"):
        find_jars(environ)


def test_missing_jars_without_maven_are_an_error_with_the_remedy(tmp_path: Path) -> None:
    """The failed attempt leaves nothing in the cache."""
    with pytest.raises(ServerError, match="install maven"):
        find_jars({"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert not (tmp_path / "tidemill" / f"kafka-{KAFKA_VERSION}").exists()


def test_java_home_counts_more_than_the_path(tmp_path: Path) -> None:
    java = tmp_path / "jdk" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.touch()
    assert find_java({"JAVA_HOME": str(tmp_path / "jdk"), "PATH": os.environ["PATH"]}) == str(java)


def test_given_addresses_are_used_and_nothing_is_started(tmp_path: Path) -> None:
    """With an address in the environment, no program is searched for."""
    servers = start_servers(tmp_path, environ={"PATH": "", "TIDEMILL_KAFKA_BROKERS": "a:1,b:2"}, needs=("kafka",))
    assert (servers.kafka, servers.handles) == ("a:1,b:2", {})


def test_a_missing_redis_server_is_named_with_its_package(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="install redis-server"):
        redis_server(tmp_path, Ports(tmp_path / "ports.json"), environ={"PATH": ""})
