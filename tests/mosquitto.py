"""Mosquitto for tests: a broker on a free loopback port with its files in a test's own folder."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

READY_S = 10.0


def mosquitto_program(name: str = "mosquitto") -> str:
    """Return the path of a Mosquitto program; without it the test skips, or fails where CI=true."""
    path = shutil.which(
        name, path=os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    )
    if path is None:
        reason = f"the program {name} is not installed"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_mosquitto(
    folder: Path, lines: Sequence[str] = ("allow_anonymous true",), port: int | None = None
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run Mosquitto with ``lines`` added to its configuration; gives its port and its process."""
    program = mosquitto_program()
    port = port or free_port()
    config = folder / f"mosquitto-{port}.conf"
    # Started by root, Mosquitto becomes user mosquitto, who may not read a test's folder.
    user = ["user root"] if os.geteuid() == 0 else []
    settings = ["persistence false", "log_dest none", "max_queued_messages 10000", *user]
    config.write_text("\n".join([*settings, f"listener {port} 127.0.0.1", *lines]) + "\n")
    process = subprocess.Popen([program, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await_port(port, process)
        yield port, process
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"mosquitto ended with {process.returncode}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError("mosquitto did not open its port")


def password_lines(folder: Path, users: dict[str, str]) -> list[str]:
    """Write a password file and return the lines that make Mosquitto ask for it."""
    program = mosquitto_program("mosquitto_passwd")
    path = folder / "passwords"
    path.touch(mode=0o600)
    for user, password in users.items():
        subprocess.run([program, "-b", str(path), user, password], check=True, capture_output=True)
    return ["allow_anonymous false", f"password_file {path}"]


@dataclass(frozen=True)
class Certificates:
    """PEM files of a certificate authority and of a server that it vouches for."""

    ca: Path
    certificate: Path
    key: Path

    def lines(self) -> list[str]:
        """Return the lines that make Mosquitto speak TLS."""
        return [f"cafile {self.ca}", f"certfile {self.certificate}", f"keyfile {self.key}"]


def make_certificates(folder: Path) -> Certificates:
    """Make a certificate authority and a certificate for 127.0.0.1 in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    ca = (
        _certificate(ca_name, ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    server = (
        _certificate(server_name, ca_name, server_key.public_key())
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    files = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    files.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    files.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        server_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return files


def _certificate(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=2))
    )
