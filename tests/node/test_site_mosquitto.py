"""Daemons as an operator deploys them: Mosquitto with TLS, a user for each site, and an ACL."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from mosquitto import make_certificates, mosquitto_program, password_lines, running_mosquitto
from site_daemons import Deployment, address, ended_in_the_end

pytestmark = [pytest.mark.mosquitto, pytest.mark.processes]


def test_sites_gossip_through_mosquitto_with_tls_password_and_acl(tmp_path: Path) -> None:
    mosquitto_program()
    certificates = make_certificates(tmp_path / "tls")
    deployment = Deployment(tmp_path / "sites", "guarded")
    names = ["alpha", "beta"]
    ids = {name: deployment.add(name).peer_id for name in names}
    acl = tmp_path / "acl"
    rights = "user {0}\ntopic readwrite gossipfl/guarded/{1}/#\ntopic read gossipfl/guarded/#\n"
    acl.write_text("".join(rights.format(name, peer_id) for name, peer_id in ids.items()))
    acl.chmod(0o600)
    lines = [*password_lines(tmp_path, {name: f"word of {name}" for name in names}), f"acl_file {acl}"]
    with running_mosquitto(tmp_path, [*lines, *certificates.lines()]) as (port, _):
        daemons = []
        for name in names:
            word = deployment.root / name / "broker.password"
            word.write_text(f"word of {name}\n")
            word.chmod(0o600)
            login = address(port, f'username = "{name}"', 'password_file = "broker.password"')
            daemons.append(deployment.site(name, [("alpha", "beta")], f'{login}\ntls = {{ca = "{certificates.ca}"}}'))
        with ended_in_the_end(daemons):
            for daemon in daemons:
                daemon.start()
            for daemon in daemons:
                daemon.until(lambda status: status["neighbours"][0]["accepted"] > 2)
            for daemon in daemons:
                daemon.kill(signal.SIGTERM)
            for daemon in daemons:
                assert daemon.ended() == 0, daemon.log_end()
