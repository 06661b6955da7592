"""The heap setting works where the C library has it and does nothing elsewhere."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from gossipfl import heap


def test_freed_pages_are_kept() -> None:
    """With the setting, a second large block costs no page faults; in a process of its own, since it is for good."""
    program = (
        "import resource\n"
        "from gossipfl.heap import keep_freed_pages\n"
        "supported = keep_freed_pages()\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    bytearray(8 << 20)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "faults()\n"
        "print(supported, faults())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    supported, faults = run.stdout.split()
    assert supported == str(platform.libc_ver()[0] == "glibc")
    if supported == "True":
        assert int(faults) < 100  # of 2,048 pages


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap.sys, "platform", "darwin")
    assert heap.keep_freed_pages() is False
