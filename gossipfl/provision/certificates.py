"""Certificates for TLS between sites and their broker: an authority of the federation's own, all keys Ed25519.

A site's certificate is for the key that it signs messages with, and its common name is its peer id: the broker takes
that for the user name, and holds each site to its own topics.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity

AUTHORITY_YEARS = 20
EARLY = timedelta(hours=1)
"""How long before it was issued a certificate is valid: clocks differ."""


class Authority:
    """Signs the certificates of one federation; ``certificate`` is its own."""

    def __init__(self, key: Identity, certificate: x509.Certificate) -> None:
        self._key = key
        self.certificate = certificate

    @classmethod
    def create(cls, key: Identity, federation: str, now: datetime) -> Authority:
        """Return a new authority that signs with ``key``."""
        name = _named(f"{federation} authority")
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        builder = (
            _builder(name, name, key.private_key().public_key(), now, timedelta(days=365 * AUTHORITY_YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(key, builder.sign(key.private_key(), None))

    @classmethod
    def load(cls, key_path: Path, certificate_path: Path) -> Authority:
        """Read an authority from its files; raises ConfigError where they cannot be used."""
        key = Identity.load(key_path)
        certificate = load_certificate(certificate_path)
        if certificate.public_key() != key.private_key().public_key():
            raise ConfigError(f"{certificate_path} is not the certificate of {key_path}")
        return cls(key, certificate)

    def site(self, peer_id: str, public_key: bytes, now: datetime, valid: timedelta) -> x509.Certificate:
        """Return the client certificate of a site's own key."""
        key = Ed25519PublicKey.from_public_bytes(public_key)
        return self._issue(_named(peer_id), key, now, valid, ExtendedKeyUsageOID.CLIENT_AUTH, [])

    def broker(self, key: Identity, hosts: Iterable[str], now: datetime, valid: timedelta) -> x509.Certificate:
        """Return the server certificate of a broker that is reached under the names or addresses ``hosts``."""
        names = [_general_name(host) for host in hosts]
        public = key.private_key().public_key()
        return self._issue(_named("broker"), public, now, valid, ExtendedKeyUsageOID.SERVER_AUTH, names)

    def revoked(self, serials: Iterable[int], now: datetime) -> x509.CertificateRevocationList:
        """Return the list of certificates that hold no more, by serial number."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - EARLY)
            .next_update(now + timedelta(days=365 * AUTHORITY_YEARS))
        )
        for serial in serials:
            revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(revoked)
        return builder.sign(self._key.private_key(), None)

    def _issue(
        self,
        subject: x509.Name,
        key: Ed25519PublicKey,
        now: datetime,
        valid: timedelta,
        usage: x509.ObjectIdentifier,
        names: list[x509.GeneralName],
    ) -> x509.Certificate:
        authority = self.certificate.public_key()
        assert isinstance(authority, Ed25519PublicKey)
        builder = (
            _builder(subject, self.certificate.subject, key, now, valid)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority), critical=False)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self._key.private_key(), None)


def load_certificate(path: Path) -> x509.Certificate:
    """Read a PEM certificate; raises ConfigError where there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"certificate {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} holds no certificate in PEM") from None


def pem(certificate: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Return the PEM text."""
    return certificate.public_bytes(Encoding.PEM).decode()


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, now: datetime, valid: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLY)
        .not_valid_after(now + valid)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
