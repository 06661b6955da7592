"""One site's folder: all that its daemon needs, and nothing that another site may not see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gossipfl.membership.document import Document
    from gossipfl.provision.settings import SetUp

README = """\
Site {site} of federation {federation}.

1. Copy this folder to the site, readable by the daemon's user alone.
{key}2. Fill in [task] in site.toml: where this site's data is.
3. gossipfl-node check site.toml
4. gossipfl-node run site.toml      (or the systemd unit of the operator's guide)
"""

OWN_KEY = """\
   The site has made its key itself: put it beside site.toml as site.key, mode 0600.
"""


def site_file(site: str, set_up: SetUp) -> str:
    """Return site.toml."""
    lines = [
        f"# Site {site} of federation {set_up.federation}. What else can be said here: node/site.example.toml.",
        'mode = "async"',
        "evaluate_every = 10",
        "",
        "[federation]",
        'membership = "membership.json"   # replaced by newer versions, which come by gossip; see state/memberships',
        "",
        "[site]",
        f"name = {json.dumps(site)}",
        'key = "site.key"',
        'state = "state"',
        "round_every_s = 10.0",
        "",
    ]
    if set_up.broker is not None:
        lines += [
            "[broker]",
            f"host = {json.dumps(set_up.broker.host)}",
            f"port = {set_up.broker.port}",
            "wait = true",
            "",
            "[broker.tls]",
            'ca = "ca.pem"',
            'cert = "site.pem"',
            'key = "site.key"',
            "",
        ]
    else:
        lines += ["[libp2p]", f'listen = ["/ip4/0.0.0.0/tcp/{set_up.listen_port}"]', ""]
    lines += ["[task]", f"name = {json.dumps(set_up.task)}", "", "[train]", "local_steps = 10", ""]
    return "\n".join(lines)


def bundle_files(
    site: str, document: Document, set_up: SetUp, *, own_key: bool, certificate: str | None, authority: str | None
) -> dict[str, str]:
    """Return a site's files by name, but for its key; ``own_key``: the site has made that itself."""
    files = {
        "README.txt": README.format(site=site, federation=set_up.federation, key=OWN_KEY if own_key else ""),
        "site.toml": site_file(site, set_up),
        "membership.json": document.encode().decode(),
    }
    if certificate is not None and authority is not None:
        files |= {"site.pem": certificate, "ca.pem": authority}
    return files
