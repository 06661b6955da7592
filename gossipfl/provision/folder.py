"""The folder of a federation, with whoever sets it up: memberships, keys of the authority, bundles of the sites.

federation.toml         how sites are set up
membership.json         the version in force
history/                all versions so far
secret/                 signer.key, ca.key: keep them where no site and no broker can read them
broker/                 for the broker's machine: mosquitto.conf, acl, its certificate
certificates/           what was issued to each site
sites/NAME/             for each site: copy it there, then delete it here
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from gossipfl.errors import ConfigError
from gossipfl.identity import Identity, PeerId, public_key_of
from gossipfl.membership.document import Document, check_successor, read_document
from gossipfl.provision.broker import access_control, configuration
from gossipfl.provision.bundle import bundle_files
from gossipfl.provision.certificates import Authority, load_certificate, pem
from gossipfl.provision.settings import SetUp, format_set_up, read_set_up

SECRET_MODE = 0o700


@dataclass(frozen=True)
class FederationFolder:
    """Reads and writes the folder at ``path``; every method raises ConfigError in one line."""

    path: Path

    # ------------------------------------------------------------------------------------------ reading

    def set_up(self) -> SetUp:
        """Return how sites are set up."""
        if not (self.path / "federation.toml").is_file():
            raise ConfigError(f"{self.path} is no federation's folder; make one with: gossipfl federation init")
        return read_set_up(self.path / "federation.toml")

    def document(self) -> Document:
        """Return the version in force."""
        return read_document(self.path / "membership.json")

    def authority(self) -> Authority:
        """Return who signs the certificates."""
        return Authority.load(self.path / "secret" / "ca.key", self.path / "broker" / "ca.pem")

    def signer(self) -> Identity:
        """Return the key that signs memberships."""
        return Identity.load(self.path / "secret" / "signer.key")

    # ------------------------------------------------------------------------------------------ writing

    def create(self, set_up: SetUp, now: datetime) -> Identity:
        """Make the folder with new keys, and return the signer's."""
        if self.path.exists() and any(self.path.iterdir()):
            raise ConfigError(f"{self.path} exists and is not empty; choose another folder")
        make_folder(self.path)
        for name in ("secret", "sites", "broker"):
            make_folder(self.path / name, SECRET_MODE)
        for name in ("history", "certificates"):
            make_folder(self.path / name)
        signer = Identity.generate()
        signer.save(self.path / "secret" / "signer.key")
        write(self.path / "federation.toml", format_set_up(set_up))
        if set_up.broker is not None:
            key = Identity.generate()
            key.save(self.path / "secret" / "ca.key")
            authority = Authority.create(key, set_up.federation, now)
            write(self.path / "broker" / "ca.pem", pem(authority.certificate))
            self._set_up_broker(authority, set_up, now)
        return signer

    def _set_up_broker(self, authority: Authority, set_up: SetUp, now: datetime) -> None:
        assert set_up.broker is not None
        folder = self.path / "broker"
        key = Identity.generate()
        key.save(folder / "broker.key")
        valid = timedelta(days=set_up.certificate_days)
        write(folder / "broker.pem", pem(authority.broker(key, [set_up.broker.host], now, valid)))
        write(folder / "mosquitto.conf", configuration(set_up.federation, set_up.broker.port))
        write(folder / "acl", access_control(set_up.federation))
        self._write_revoked(authority, now)

    def put_in_force(self, document: Document) -> None:
        """Write a version that enough signers have signed; what was in force stays in history/."""
        if not document.complete:
            raise ConfigError(
                f"version {document.content.version} needs {document.content.threshold} signatures and has "
                f"{len(document.approved_by(document.content.signers))}; let others sign it: gossipfl federation sign"
            )
        if (self.path / "membership.json").exists():
            check_successor(document, self.document())
        text = document.encode().decode()
        write(self.path / "history" / f"membership-{document.content.version}.json", text)
        write(self.path / "membership.json", text)
        for site in document.content.members:  # folders that were not brought to their sites yet
            if (self.path / "sites" / site / "membership.json").exists():
                write(self.path / "sites" / site / "membership.json", text)
        (self.path / "proposal.json").unlink(missing_ok=True)

    def propose(self, document: Document) -> Path:
        """Write a version that more signers have to sign, and return where."""
        path = self.path / "proposal.json"
        write(path, document.encode().decode())
        return path

    def write_bundle(self, site: str, document: Document, key: Identity | None, now: datetime) -> Path:
        """Write the folder of one site, and return where; without ``key`` the site has made its own."""
        set_up = self.set_up()
        certificate = authority_text = None
        if set_up.broker is not None:
            authority = self.authority()
            peer_id = document.content.members[site].peer_id
            valid = timedelta(days=set_up.certificate_days)
            issued = authority.site(peer_id, public_key_of(peer_id), now, valid)
            certificate, authority_text = pem(issued), pem(authority.certificate)
            write(self._certificate(site, peer_id), certificate)
        folder = self.path / "sites" / site
        make_folder(folder, SECRET_MODE)
        if key is not None:
            (folder / "site.key").unlink(missing_ok=True)
            key.save(folder / "site.key")
        files = bundle_files(
            site, document, set_up, own_key=key is None, certificate=certificate, authority=authority_text
        )
        for name, text in files.items():
            write(folder / name, text)
        return folder

    def revoke(self, site: str, peer_id: PeerId, now: datetime) -> None:
        """Let the broker refuse a site's certificate, once it has the new list."""
        certificate = self._certificate(site, peer_id)
        if self.set_up().broker is None or not certificate.exists():
            return
        certificate.replace(certificate.with_suffix(".revoked"))
        self._write_revoked(self.authority(), now)

    def _write_revoked(self, authority: Authority, now: datetime) -> None:
        gone = sorted((self.path / "certificates").glob("*.revoked"))
        serials = [load_certificate(path).serial_number for path in gone]
        write(self.path / "broker" / "revoked.pem", pem(authority.revoked(serials, now)))

    def _certificate(self, site: str, peer_id: PeerId) -> Path:
        return self.path / "certificates" / f"{site}-{peer_id[-12:]}.pem"


def write(path: Path, text: str) -> None:
    """Replace a file in one step; raises ConfigError where it cannot be written."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from None


def make_folder(path: Path, mode: int = 0o755) -> None:
    """Make a folder where there is none; raises ConfigError."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    except OSError as error:
        raise ConfigError(f"folder {path} cannot be made: {error.strerror}") from None
