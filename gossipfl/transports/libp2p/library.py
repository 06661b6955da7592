"""Whether the library that this transport stands on is here, in a version that it was tried with."""

from __future__ import annotations

import importlib.util
from importlib import metadata

from gossipfl.errors import ConfigError

TRIED_VERSIONS = ("0.8.1",)
"""Versions of py-libp2p that ``host``, ``noise`` and ``yamux`` were written against; see docs/upstream."""


def check_library() -> None:
    """Raise ConfigError in one line where py-libp2p is missing, or of a version that was never tried."""
    try:
        version = metadata.version("libp2p")
    except metadata.PackageNotFoundError:  # a folder that happens to have that name is not the library
        version = ""
    if not version or importlib.util.find_spec("libp2p") is None or importlib.util.find_spec("trio") is None:
        raise ConfigError(
            "transport libp2p needs py-libp2p, which is not installed; run: pip install 'gossipfl[libp2p]'"
        )
    if version not in TRIED_VERSIONS:
        raise ConfigError(
            f"transport libp2p was not tried with py-libp2p {version}; run: pip install 'libp2p=={TRIED_VERSIONS[-1]}'"
        )
