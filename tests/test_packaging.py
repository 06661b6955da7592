"""What is shipped, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as the build backend makes it, in a process of its own: it changes the working directory."""
    folder = tmp_path_factory.mktemp("wheel")
    script = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)], cwd=REPOSITORY, check=True, capture_output=True, text=True
    )
    return folder / done.stdout.splitlines()[-1]


def test_the_wheel_has_two_top_level_names(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    packages = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"gossipfl", "gossipfl_node"}
    assert {"gossipfl/py.typed", "gossipfl_node/py.typed"} <= set(names)
    assert any(name.startswith("gossipfl/topology/library/") and name.endswith(".json") for name in names)


def test_the_wheel_installs_both_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entry).decode()
    assert "gossipfl = gossipfl.cli:main" in text
    assert "gossipfl-node = gossipfl_node.cli:main" in text


@pytest.mark.parametrize("module", ["gossipfl", "gossipfl.cli", "gossipfl.config", "gossipfl_node.cli"])
def test_an_import_loads_nothing_heavy(module: str) -> None:
    heavy = ["torch", "matplotlib", "pyarrow", "sklearn", "scipy", "networkx"]
    script = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
