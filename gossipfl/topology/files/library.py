"""Graph files: found by path or by name, read within limits, written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

from gossipfl.errors import TopologyError
from gossipfl.topology.files.graphml import format_graphml, parse_graphml
from gossipfl.topology.files.raw import RawGraph, repaired, sites
from gossipfl.topology.files.tables import format_edge_list, format_json, parse_edge_list, parse_json
from gossipfl.topology.graph import Topology
from gossipfl.topology.limits import MAX_FILE_BYTES

Parse = Callable[[str, str], RawGraph]
Format = Callable[[Topology], str]

READERS: Mapping[str, Parse] = MappingProxyType(
    {
        ".graphml": parse_graphml,
        ".json": parse_json,
        ".edges": parse_edge_list,
        ".txt": parse_edge_list,
        ".csv": parse_edge_list,
    }
)
WRITERS: Mapping[str, Format] = MappingProxyType(
    {
        ".graphml": format_graphml,
        ".json": format_json,
        ".edges": partial(format_edge_list, comma=False),
        ".txt": partial(format_edge_list, comma=False),
        ".csv": partial(format_edge_list, comma=True),
    }
)


def library() -> dict[str, Path]:
    """Return the curated graph files by lower-case name.

    A wheel carries them in ``gossipfl/topology/library``; in a checkout they lie in ``topologies/`` at its root.
    """
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "library", here.parents[3] / "topologies"):
        if folder.is_dir():
            return {path.stem.lower(): path for path in sorted(folder.glob("*.json"))}
    return {}


def find_file(name: str) -> Path | None:
    """Return the graph file that ``name`` means: a path, else a name in the library, else None."""
    path = Path(name)
    if path.suffix.lower() in READERS or len(path.parts) != 1:
        return path
    return library().get(name.lower()) or (path if path.is_file() else None)


def read_topology(path: str | Path, *, largest: bool = False) -> Topology:
    """Return the connected topology of a graph file, with everything that was repaired in ``repairs``.

    ``largest`` keeps the largest part of a disconnected graph, which is refused otherwise. Raises
    ``TopologyError`` for a file that is missing, too large, of an unknown kind or malformed.
    """
    path = Path(path)
    raw, where = _parsed(path)
    return repaired(raw, where, path.stem, largest)


def read_sites(path: str | Path) -> Topology:
    """Return a graph file's nodes with labels and positions, and no edge. Raises ``TopologyError``."""
    path = Path(path)
    raw, where = _parsed(path)
    return sites(raw, where, path.stem)


def _parsed(path: Path) -> tuple[RawGraph, str]:
    where = f'graph file "{path}"'
    parse = READERS.get(path.suffix.lower())
    if parse is None:
        raise TopologyError(f'{where}: ending "{path.suffix}" is unknown; choose one of: {", ".join(READERS)}')
    return parse(_text(path, where), where), where


def _text(path: Path, where: str) -> str:
    try:
        with path.open("rb") as file:
            # One byte beyond the limit tells a file that is too large, even a pipe, which has no size.
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TopologyError(f"{where} cannot be read ({error.strerror}); check the path") from error
    if len(content) > MAX_FILE_BYTES:
        raise TopologyError(f"{where} is larger than {MAX_FILE_BYTES} bytes; take a part of the graph")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TopologyError(f"{where} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error


def write_topology(topology: Topology, path: str | Path) -> None:
    """Write ``topology`` in the format that the file's ending names; raises ``TopologyError``."""
    path = Path(path)
    form = WRITERS.get(path.suffix.lower())
    if form is None:
        raise TopologyError(
            f'graph file "{path}": ending "{path.suffix}" is unknown; choose one of: {", ".join(WRITERS)}'
        )
    try:
        path.write_text(form(topology), encoding="utf-8")
    except OSError as error:
        raise TopologyError(f'graph file "{path}" cannot be written ({error.strerror}); check the path') from error
