"""Tests of hack/kube without a cluster: certificates, kubeconfigs, image archives, programs and refusals."""

from __future__ import annotations

import base64
import io
import json
import ssl
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from kube import binaries, kind
from kube.build import BuildError, find_go
from kube.kubeconfig import write_kubeconfig
from kube.local import archive
from kube.local.layout import Layout
from kube.pki import Authority

ROOT = Path(__file__).resolve().parents[3]


def test_certificates_name_their_owner_and_are_signed_by_the_authority(tmp_path: Path) -> None:
    """A client's certificate names user and group, a server's its addresses. Only the owner reads the keys."""
    authority = Authority(tmp_path)
    client = authority.issue("admin", common_name="admin", organization="system:masters")
    server = authority.issue("server", common_name="server", addresses=["127.0.0.1"], names=["localhost"])
    ca, client_certificate, server_certificate = (
        x509.load_pem_x509_certificate(path.read_bytes())
        for path in (authority.certificate, client.certificate, server.certificate)
    )
    client_certificate.verify_directly_issued_by(ca)
    server_certificate.verify_directly_issued_by(ca)
    subject = client_certificate.subject
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["admin"]
    assert [a.value for a in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["system:masters"]
    names = server_certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (authority.key, client.key, server.key)} == {0o600}
    ssl.create_default_context(cafile=authority.certificate).load_cert_chain(client.certificate, client.key)


def test_a_second_authority_in_a_folder_has_the_certificates_of_the_first(tmp_path: Path) -> None:
    first = Authority(tmp_path)
    before = (first.certificate.read_bytes(), first.issue("a", common_name="a").certificate.read_bytes())
    second = Authority(tmp_path)
    assert (second.certificate.read_bytes(), second.issue("a", common_name="a").certificate.read_bytes()) == before


def test_a_kubeconfig_contains_its_certificates_and_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    """A kubeconfig names no other file, so a copy of it works in any folder."""
    authority = Authority(tmp_path / "pki")
    user = authority.issue("admin", common_name="admin")
    path = write_kubeconfig(tmp_path / "config", server="https://127.0.0.1:1", authority=authority, user=user)
    document = yaml.safe_load(path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert document["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1"
    assert base64.b64decode(document["users"][0]["user"]["client-key-data"]) == user.key.read_bytes()
    assert document["current-context"] == document["contexts"][0]["name"]


def test_a_written_image_has_one_layer_with_executables_and_an_unprivileged_user(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    written = archive.write_image(
        tmp_path / "image.tar", "a.local/b:1", files={"/bin/b": program}, entrypoint=["/bin/b"]
    )
    with tarfile.open(written) as tar:
        members = {name: tar.extractfile(name).read() for name in tar.getnames()}  # type: ignore[union-attr]
    manifest = json.loads(members["manifest.json"])
    config = json.loads(members[manifest[0]["Config"]])
    assert manifest[0]["RepoTags"] == ["a.local/b:1"]
    assert config["config"] == {"Entrypoint": ["/bin/b"], "User": "65535:65535"}
    with tarfile.open(fileobj=io.BytesIO(members[manifest[0]["Layers"][0]])) as layer:
        assert [(entry.name, entry.mode, entry.size) for entry in layer] == [("bin/b", 0o755, 4)]


@pytest.mark.parametrize(
    ("shown", "reason"),
    [
        pytest.param(None, "go is not on the PATH", id="missing"),
        pytest.param("go1.19.8", "is go1.19.8", id="Debian 12's own"),
        pytest.param("devel", "is devel", id="unreadable"),
    ],
)
def test_an_unfit_go_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, reason: str
) -> None:
    """The message names the installed version and how to install a newer one."""
    if shown is not None:
        program = tmp_path / "go"
        program.write_text(f"#!/bin/sh\necho {shown}\n")
        program.chmod(0o755)
    which = "kube.build.shutil.which"
    monkeypatch.setattr(which, lambda name, path=None: str(tmp_path / name) if shown is not None else None)
    with pytest.raises(BuildError, match=reason) as caught:
        find_go()
    assert "install a newer one below /usr/local/go or have it on the PATH" in str(caught.value)


def test_the_kubernetes_version_is_that_of_go_mod() -> None:
    assert f"k8s.io/kubernetes {binaries.kubernetes_version()}\n" in (binaries.MODULE / "go.mod").read_text()


def test_every_program_of_the_binary_has_a_link() -> None:
    """The table of programs in main.go has the same names as the links."""
    table = (binaries.MODULE / "main.go").read_text().partition("var programs")[2].partition("\n}\n")[0]
    named = {line.split('"')[1] for line in table.splitlines() if line.startswith('\t"')}
    assert named == set(binaries.LINKS)


def test_a_folder_too_deep_for_sockets_is_refused() -> None:
    """The message names the folder and the option that changes it."""
    with pytest.raises(ValueError, match=r"/x{80}: sockets below it .* choose a shorter one with --dir"):
        Layout(Path("/" + "x" * 80)).check()


def test_without_the_program_kind_the_reason_names_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert kind.why_not() == "kind is not on the PATH"


def test_help_names_every_command() -> None:
    """`hack/cluster --help` works without a cluster, and shows an example of each command."""
    shown = subprocess.run(
        [str(ROOT / "hack" / "cluster"), "--help"], capture_output=True, text=True, check=True
    ).stdout
    for command in ("up", "down", "status", "load-images", "kubeconfig"):
        assert f"hack/cluster {command}" in shown


def test_the_command_kubeconfig_fails_without_a_cluster(tmp_path: Path) -> None:
    """A script that exports the path fails at this command, not at a later one."""
    command = [sys.executable, "-m", "kube", "kubeconfig", "--provider=local", f"--dir={tmp_path / 'none'}"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT / "hack")}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no cluster; start one with `hack/cluster up`" in done.stderr
