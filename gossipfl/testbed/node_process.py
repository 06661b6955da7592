"""One node of a testbed: a forked process with the agent of a real deployment in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gossipfl.agent import Agent
from gossipfl.compute import ThreadCompute
from gossipfl.errors import GossipflError
from gossipfl.testbed.observe import NodeObserver, told_at_the_end
from gossipfl.testbed.orphans import die_with_parent
from gossipfl.testbed.pipe import PipeWriter
from gossipfl.testbed.plan import node_name
from gossipfl.testbed.saboteurs.seat import sabotaged

if TYPE_CHECKING:
    from collections.abc import Callable

    from gossipfl.testbed.plan import Plan
    from gossipfl.transports.base import Transport

    MakeTransport = Callable[[int], Transport]

INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
"""What asks a testbed to end."""

MAX_VECTOR_BYTES = 64 << 20
"""A larger final vector stays at its node: consensus distance is then unknown."""


def node_process(plan: Plan, node: int, make_transport: MakeTransport, descriptor: int, parent: int) -> NoReturn:
    """Be a node from fork to exit; never returns to the code that forked."""
    code = 1
    pipe = PipeWriter(descriptor)
    try:
        _become_child(parent, node_name(node))
        ended = asyncio.run(_run(plan, node, make_transport, pipe))
        pipe.end(**ended, **_memory())
        code = 0
    except GossipflError as error:
        pipe.end(error=str(error), kind=type(error).__name__)
    except BrokenPipeError:
        pass  # the testbed is gone
    except BaseException as error:  # noqa: BLE001 - a forked child must never run its parent's handlers
        trace = traceback.format_exc()
        sys.stderr.write(f"{node_name(node)}: {trace}")
        pipe.end(error=f"{type(error).__name__}: {error}", kind="crash")
    finally:
        sys.stderr.flush()
        os._exit(code)


def _become_child(parent: int, name: str) -> None:
    """Die with the parent, and leave Ctrl-C to it: it asks its nodes to end with SIGTERM.

    The parent has blocked both signals for the fork, so that none meets its own handlers here.
    """
    die_with_parent(parent)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name, encoding="ascii")  # tells the nodes apart in ps and top


async def _run(plan: Plan, node: int, make_transport: MakeTransport, pipe: PipeWriter) -> dict[str, Any]:
    learner = plan.learner(node)
    core = plan.core(node, learner)
    agent = Agent(
        core,
        learner,
        sabotaged(plan, node, core, make_transport(node)),
        ThreadCompute(node_name(node), inline_short=plan.spec.mode == "sync"),
        plan.options(),
        NodeObserver(plan, node, pipe.row, pipe.event),
        plan.liar(node),
    )
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, agent.stop)
    result = await agent.run()
    vector = learner.vector.detach().cpu().numpy()
    kept = vector.tobytes() if vector.nbytes <= MAX_VECTOR_BYTES else None
    return {**told_at_the_end(result), "vector": kept}


def _memory() -> dict[str, int]:
    """Return this process's peak resident size, and what of its memory now is its own, in bytes."""
    usage = {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
    try:
        for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
            name, value = line.split(":")
            kib = int(value.split()[0])
            if name in {"Private_Clean", "Private_Dirty"}:
                usage["private_bytes"] = usage.get("private_bytes", 0) + kib * 1024
            elif name == "Pss":
                usage["pss_bytes"] = kib * 1024
    except (OSError, ValueError):
        pass
    return usage
