"""Files for a Mosquitto broker that lets each site publish under its own id only."""

from __future__ import annotations

CONFIGURATION = """\
# Mosquitto as the broker of federation {federation}. Paths are as seen from the folder that it is started in:
#   mosquitto -c mosquitto.conf
per_listener_settings false
persistence false
max_packet_size 2097152
max_queued_bytes 67108864

listener {port}
cafile ca.pem
certfile broker.pem
keyfile broker.key
crlfile revoked.pem
tls_version tlsv1.3
require_certificate true
use_identity_as_username true
allow_anonymous false
acl_file acl
"""

ACL = """\
# %u is the name in a site's certificate: its peer id. Sites that join later need no change here.
pattern readwrite gossipfl/{federation}/%u/#
pattern read gossipfl/{federation}/+/all
pattern read gossipfl/{federation}/+/to/%u
"""


def configuration(federation: str, port: int) -> str:
    """Return mosquitto.conf."""
    return CONFIGURATION.format(federation=federation, port=port)


def access_control(federation: str) -> str:
    """Return the list of who may publish and read what."""
    return ACL.format(federation=federation)
