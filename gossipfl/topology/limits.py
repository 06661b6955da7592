"""How large a graph may be: bounds that keep a wrong number or a hostile file from taking the machine."""

from __future__ import annotations

MAX_NODES = 100_000
MAX_EDGES = 2_000_000
MAX_FILE_BYTES = 32 * 1024 * 1024
MAX_LABEL_CHARACTERS = 200
