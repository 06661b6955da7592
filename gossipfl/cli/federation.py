"""``gossipfl federation``: who belongs, signed and numbered; a folder for each site, and one for the broker."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipfl.errors import ConfigError

if TYPE_CHECKING:
    from gossipfl.identity import PeerId
    from gossipfl.membership.document import Document
    from gossipfl.provision.folder import FederationFolder
    from gossipfl.provision.settings import SetUp
    from gossipfl.topology.graph import Topology

app = typer.Typer(name="federation", help="Who belongs to a federation, signed and numbered.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Option("--dir", "-d", metavar="DIR", help="The federation's folder, made by init.", show_default=True)
]
PeerIds = Annotated[
    list[str] | None,
    typer.Option("--peer-id", metavar="NAME=ID", help="A site that has made its key itself; repeatable."),
]
HERE = Path()


@app.command(
    epilog="Examples:\n\ngossipfl federation init ring --sites airport,harbour,stadium --name ran-north "
    "--broker broker.example.org --dir ran-north\n\n"
    "gossipfl federation init garr201201 --libp2p --name garr --dir garr"
)
def init(
    topology: Annotated[str, typer.Argument(metavar="NAME|FILE", help="A graph family, or a graph file.")],
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="The federation's name.")],
    folder: Annotated[Path, typer.Option("--dir", "-d", metavar="DIR", help="Where to make its folder.")],
    sites: Annotated[
        str | None, typer.Option("--sites", metavar="A,B,...", help="Names of the sites; else the graph's own.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option("--broker", metavar="HOST[:PORT]", help="Gossip over MQTT by this broker, with TLS.")
    ] = None,
    libp2p: Annotated[bool, typer.Option("--libp2p", help="Gossip over libp2p: no broker.")] = False,
    peer_ids: PeerIds = None,
    address: Annotated[
        list[str] | None,
        typer.Option("--address", metavar="NAME=MULTIADDR", help="Where a site is dialled over libp2p; repeatable."),
    ] = None,
    signers: Annotated[
        list[str] | None,
        typer.Option("--signer", metavar="ID", help="Peer id of another signer's key; repeatable."),
    ] = None,
    threshold: Annotated[int, typer.Option("--threshold", min=1, help="How many signers a version needs.")] = 1,
    encrypt: Annotated[
        bool, typer.Option("--encrypt/--no-encrypt", help="Encrypt messages with a key that only members have.")
    ] = True,
    task: Annotated[str, typer.Option("--task", metavar="NAME", help="What is learnt.")] = "digits",
    model_seed: Annotated[int, typer.Option("--model-seed", min=0, help="Of the common initial model.")] = 0,
) -> None:
    """Make a federation: version 1 of its membership, and a folder for each site."""
    from gossipfl.identity import Identity
    from gossipfl.provision.changes import first_version
    from gossipfl.provision.folder import FederationFolder

    names, edges = _sites(topology, sites)
    given = _peer_ids(peer_ids, names)
    addresses: dict[str, list[str]] = {}
    for site, text in _named("--address", address, names):
        addresses.setdefault(site, []).append(text)
    keys = {site: Identity.generate() for site in names if site not in given}
    members = {site: given.get(site) or keys[site].peer_id for site in names}
    now, home = datetime.now(UTC), FederationFolder(folder)
    set_up = _set_up(name, broker, libp2p, task)
    signer = home.create(set_up, now)
    document = first_version(
        name,
        members,
        edges,
        signers=[signer.peer_id, *(signers or [])],
        threshold=threshold,
        model_seed=model_seed,
        encrypted=encrypt,
        addresses=addresses,
        issued=now,
    ).signed_by(signer)
    for site in names:
        home.write_bundle(site, document, keys.get(site), now)
    _put_in_force(home, document)
    typer.echo(f"{len(names)} sites in {home.path / 'sites'}; keep {home.path / 'secret'} offline")


@app.command(epilog="Example:  gossipfl federation add depot --links airport,harbour --dir ran-north")
def add(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The new site.")],
    links: Annotated[str, typer.Option("--links", metavar="A,B", help="Whom it gossips with.")],
    folder: Folder = HERE,
    peer_id: Annotated[
        str | None, typer.Option("--peer-id", metavar="ID", help="Of a key that the site has made itself.")
    ] = None,
    address: Annotated[
        list[str] | None, typer.Option("--address", metavar="MULTIADDR", help="Where it is dialled over libp2p.")
    ] = None,
) -> None:
    """Let a site join: the next version of the membership, and the site's folder."""
    from gossipfl.identity import Identity
    from gossipfl.provision.changes import with_site
    from gossipfl.provision.folder import FederationFolder

    home, now = FederationFolder(folder), datetime.now(UTC)
    home.set_up()
    key = Identity.generate() if peer_id is None else None
    who = peer_id if key is None else key.peer_id
    assert who is not None
    document = with_site(home.document(), site, who, _listed(links), address or [], now).signed_by(home.signer())
    where = home.write_bundle(site, document, key, now)
    _put_in_force(home, document)
    typer.echo(f"the new site's folder: {where}")


@app.command(epilog="Example:  gossipfl federation remove stadium --link airport,harbour --dir ran-north")
def remove(
    site: Annotated[str, typer.Argument(metavar="NAME", help="The site to cut off.")],
    folder: Folder = HERE,
    link: Annotated[
        list[str] | None, typer.Option("--link", metavar="A,B", help="A new link between two others; repeatable.")
    ] = None,
) -> None:
    """Cut a site off: the next version of the membership, with a key that it does not have."""
    from gossipfl.provision.changes import without_site
    from gossipfl.provision.folder import FederationFolder

    home, now = FederationFolder(folder), datetime.now(UTC)
    home.set_up()
    current = home.document()
    document = without_site(current, site, [_pair(text) for text in link or []], now).signed_by(home.signer())
    _put_in_force(home, document)
    home.revoke(site, current.content.members[site].peer_id, now)


@app.command(
    epilog="Examples:\n\ngossipfl federation rotate --dir ran-north\n\ngossipfl federation rotate --site harbour"
)
def rotate(
    folder: Folder = HERE,
    site: Annotated[
        list[str] | None, typer.Option("--site", metavar="NAME", help="Give this site a new key, too; repeatable.")
    ] = None,
    peer_ids: PeerIds = None,
    signer: Annotated[
        list[str] | None,
        typer.Option("--signer", metavar="ID", help="Peer ids of the signers from now on; repeatable."),
    ] = None,
    threshold: Annotated[int | None, typer.Option("--threshold", min=1, help="How many of them.")] = None,
    encrypt: Annotated[
        bool | None, typer.Option("--encrypt/--no-encrypt", help="Whether messages are encrypted from now on.")
    ] = None,
) -> None:
    """Renew the federation's key, and sites' or signers' keys where asked: the next version of the membership."""
    from gossipfl.identity import Identity
    from gossipfl.provision.changes import renewed
    from gossipfl.provision.folder import FederationFolder

    home, now = FederationFolder(folder), datetime.now(UTC)
    home.set_up()
    current = home.document()
    given = _peer_ids(peer_ids, list(current.content.members))
    keys = {name: Identity.generate() for name in site or [] if name not in given}
    fresh = {**{name: key.peer_id for name, key in keys.items()}, **given}
    document = renewed(
        current, now, signers=signer or None, threshold=threshold, peer_ids=fresh, encrypted=encrypt
    ).signed_by(home.signer())
    for name in fresh:
        home.write_bundle(name, document, keys.get(name), now)
    _put_in_force(home, document)
    for name in fresh:
        home.revoke(name, current.content.members[name].peer_id, now)


@app.command(epilog="Example:  gossipfl federation sign proposal.json --key operator-b.key")
def sign(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A version that needs more signatures.")],
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="A signer's key.")],
) -> None:
    """Add a signature to a version, in place."""
    from gossipfl.identity import Identity
    from gossipfl.membership.document import read_document
    from gossipfl.provision.folder import write

    document, signer = read_document(path), Identity.load(key)
    if signer.peer_id not in document.content.signers:
        typer.echo(
            f"note: {signer.peer_id} is no signer of this version; it may be one of the version before", err=True
        )
    signed = document.signed_by(signer)
    write(path, signed.encode().decode())
    typer.echo(_state(signed))


@app.command(epilog="Example:  gossipfl federation accept proposal.json --dir ran-north")
def accept(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A version that enough signers have signed.")],
    folder: Folder = HERE,
) -> None:
    """Put a signed version in force in the federation's folder, and into the folders of its sites."""
    from gossipfl.membership.document import read_document
    from gossipfl.provision.folder import FederationFolder

    home = FederationFolder(folder)
    home.set_up()
    document = read_document(path)
    home.put_in_force(document)
    typer.echo(_state(document))


@app.command(epilog="Example:  gossipfl federation show ran-north/membership.json")
def show(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A membership.")],
    after: Annotated[
        Path | None, typer.Option("--after", metavar="FILE", help="Check it as the successor of this version.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on one line.")] = False,
) -> None:
    """Tell what a membership says, and whether its signatures hold; exit code 2 where they do not."""
    from gossipfl.membership.document import check_first, check_successor, read_document

    document = read_document(path)
    if after is None:
        check_first(document)
    else:
        check_successor(document, read_document(after))
    content = document.content
    if as_json:
        approved = sorted(document.approved_by(content.signers))
        typer.echo(
            json.dumps({**content.model_dump(exclude={"key"}), "encrypted": bool(content.key), "approved": approved})
        )
        return
    typer.echo(_state(document))
    for name, site in content.members.items():
        links = sorted({other for edge in content.edges if name in edge for other in edge} - {name})
        typer.echo(f"{name}  {site.peer_id}  with {', '.join(links)}")


@app.command(epilog="Example:  gossipfl federation evidence state/evidence/12D3Koo....json -m membership.json")
def evidence(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A proof that a site has kept.")],
    membership: Annotated[
        Path | None, typer.Option("--membership", "-m", metavar="FILE", help="Name the member whose key it is.")
    ] = None,
) -> None:
    """Check the proof that a member has signed contradictions; exit code 2 where it proves nothing."""
    from gossipfl.identity import peer_id_of
    from gossipfl.membership.document import read_document
    from gossipfl.messages.statements import read_proof

    try:
        proof = read_proof(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"evidence {path} cannot be read: {error.strerror}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    sender = peer_id_of(proof.sender)
    name = ""
    if membership is not None:
        known = read_document(membership).name_of(sender)
        name = "no member, " if known is None else f"{known} "
    typer.echo(f"proved: {name}{sender} has signed {proof.contradiction}")


def _put_in_force(home: FederationFolder, document: Document) -> None:
    if not document.complete:
        path = home.propose(document)
        typer.echo(f"{_state(document)}; let others sign {path}, then: gossipfl federation accept {path}")
        return
    home.put_in_force(document)
    typer.echo(_state(document))


def _state(document: Document) -> str:
    content = document.content
    approved = len(document.approved_by(content.signers))
    secret = "encrypted" if content.key is not None else "not encrypted"
    return (
        f'membership version {content.version} of "{content.federation}", {len(content.members)} sites, {secret}, '
        f"signed by {approved} of {len(content.signers)} signers ({content.threshold} needed)"
    )


def _sites(topology: str, sites: str | None) -> tuple[list[str], list[tuple[str, str]]]:
    from gossipfl.topology import make_topology

    listed = _listed(sites) if sites is not None else None
    graph = make_topology(topology, nodes=None if listed is None else len(listed))
    names = listed if listed is not None else _own_names(graph)
    if len(names) != graph.nodes:
        raise ConfigError(f"--sites names {len(names)} sites, but the graph has {graph.nodes} nodes")
    return names, [(names[one], names[other]) for one, other in graph.edges]


def _own_names(graph: Topology) -> list[str]:
    if graph.labels is None:
        return [f"site-{node}" for node in range(graph.nodes)]
    names = [slug(label) for label in graph.labels]
    twins = {name for name in names if names.count(name) > 1}
    return [f"{name}-{node}" if name in twins else name for node, name in enumerate(names)]


def slug(text: str) -> str:
    """Return the text as the name of a site: letters, digits, '_', '.' and '-'."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", plain).strip("-.")[:64] or "site"


def _set_up(name: str, broker: str | None, libp2p: bool, task: str) -> SetUp:
    from gossipfl.provision.settings import BrokerAddress, SetUp

    if (broker is None) == (not libp2p):
        raise ConfigError("say how sites gossip: --broker HOST[:PORT], or --libp2p; one of the two")
    if broker is None:
        return SetUp(federation=name, transport="libp2p", task=task)
    host, _, port = broker.rpartition(":") if re.search(r":\d+$", broker) else (broker, "", "8883")
    return SetUp(federation=name, broker=BrokerAddress(host=host, port=int(port)), task=task)


def _peer_ids(pairs: Iterable[str] | None, names: list[str]) -> dict[str, PeerId]:
    return dict(_named("--peer-id", pairs, names))


def _named(option: str, pairs: Iterable[str] | None, names: list[str]) -> list[tuple[str, str]]:
    """Read NAME=TEXT for sites; raises ConfigError for anything else."""
    from gossipfl.settings import suggest

    found = []
    for pair in pairs or ():
        name, equals, text = pair.partition("=")
        if not equals:
            raise ConfigError(f"{option} {pair}: write NAME=TEXT")
        if name not in names:
            raise ConfigError(f'{option} {pair}: "{name}" is no site{suggest(name, names)}')
        found.append((name, text))
    return found


def _listed(text: str) -> list[str]:
    names = [part.strip() for part in text.split(",") if part.strip()]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f'"{min(twice)}" is named twice')
    return names


def _pair(text: str) -> tuple[str, str]:
    names = _listed(text)
    if len(names) != 2:
        raise ConfigError(f"--link {text}: name two sites, as in --link airport,harbour")
    return names[0], names[1]
