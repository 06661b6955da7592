"""A site goes on from its checkpoints: after a stop, after a SIGKILL, with damage, on a disk that takes nothing."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from site_daemons import Daemon, Deployment, address, ring

from gossipfl.transports.broker import start_broker_process
from gossipfl_node.checkpoints import Checkpoints

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

QUICK = {"round_every_s = 0.1": "round_every_s = 0.05\ncheckpoint_every_s = 0.2"}


@pytest.fixture(scope="module")
def broker() -> Iterator[int]:
    with start_broker_process() as process:
        yield process.port


@pytest.fixture
def sites(tmp_path: Path, broker: int) -> Iterator[list[Daemon]]:
    deployment = Deployment(tmp_path, f"resumed-{tmp_path.name[-20:]}")
    for name in ("alpha", "beta", "gamma"):
        deployment.add(name)
    daemons = [
        deployment.site(name, ring(list(deployment.members)), address(broker), QUICK) for name in deployment.members
    ]
    try:
        yield daemons
    finally:
        for daemon in daemons:
            if daemon.process is not None and daemon.process.poll() is None:
                daemon.kill(signal.SIGKILL)
                daemon.ended()


def named(daemon: Daemon, event: str) -> list[dict[str, object]]:
    """Return the events of one name that the journal has; a killed daemon may have left half a line."""
    lines = (daemon.state / "events.jsonl").read_text().splitlines()
    return [each for each in map(_parsed, lines) if each.get("event") == event]


def _parsed(line: str) -> dict[str, object]:
    try:
        return dict(json.loads(line))
    except ValueError:
        return {}


def saved_round(daemon: Daemon) -> int:
    """Return the round of the newest checkpoint on the disk."""
    checkpoint = Checkpoints(daemon.state / "checkpoints").load()
    assert checkpoint is not None
    return checkpoint.round


def test_a_killed_site_loses_no_more_than_since_its_last_checkpoint(sites: list[Daemon]) -> None:
    for daemon in sites:
        daemon.start()
    alpha, beta, _ = sites
    for kill in range(3):
        alpha.until(lambda status: status["events"].get("neighbour_joined", 0) >= 2 and status["round"] > 5)
        alpha.until(lambda _: len(named(alpha, "checkpoint")) > kill)  # noqa: B023 - as below
        alpha.kill(signal.SIGKILL)
        alpha.ended()
        saved = saved_round(alpha)
        assert saved >= max(int(str(each["round"])) for each in named(alpha, "checkpoint"))
        alpha.start()
        alpha.until(lambda status: status["round"] > saved)  # noqa: B023 - waited for here
        alpha.until(lambda _: len(named(alpha, "restored")) > kill)  # noqa: B023 - as above
        assert named(alpha, "restored")[kill]["round"] == saved
    beta.until_neighbour(alpha, lambda each: each["state"] == "joined" and each["last_verdict"]["accepted"])


def test_a_stopped_site_goes_on_where_it_stopped_with_all_it_needs(sites: list[Daemon]) -> None:
    alpha, beta, _ = sites
    for daemon in sites:
        daemon.start()
    alpha.until(lambda status: status["round"] > 10)
    alpha.kill(signal.SIGTERM)
    assert alpha.ended() == 0
    checkpoint = Checkpoints(alpha.state / "checkpoints").load()
    assert checkpoint is not None
    assert int(str(named(alpha, "ended")[0]["round"])) == checkpoint.round
    kept = set(checkpoint.tensors)
    assert {"core/replica", "learner/order/generator"} <= kept
    replica = checkpoint.tensors["core/replica"]
    assert bool(torch.isfinite(replica).all())
    alpha.start()
    alpha.until(lambda status: status["round"] > checkpoint.round)
    assert not named(alpha, "caught_up")
    beta.until_neighbour(alpha, lambda each: each["state"] == "joined")


def test_damage_costs_a_generation_and_is_told(sites: list[Daemon]) -> None:
    alpha = sites[0]
    alpha.start()
    alpha.until(lambda _: len(named(alpha, "checkpoint")) >= 3)
    alpha.kill(signal.SIGKILL)
    alpha.ended()
    newest, older = sorted(path for path in (alpha.state / "checkpoints").iterdir() if path.name.isdecimal())[:-3:-1]
    tensors = next(path for path in newest.iterdir() if path.suffix == ".safetensors")
    content = bytearray(tensors.read_bytes())
    content[len(content) // 2] ^= 1
    tensors.write_bytes(bytes(content))
    alpha.start()
    alpha.until(lambda _: bool(named(alpha, "restored")))
    assert named(alpha, "checkpoint_damaged")
    assert named(alpha, "restored")[0]["checkpoint"] == int(older.name)


def test_checkpoints_of_another_model_are_refused_in_one_line(sites: list[Daemon]) -> None:
    alpha, beta, _ = sites
    alpha.start()
    alpha.until(lambda _: bool(named(alpha, "checkpoint")))
    alpha.kill(signal.SIGTERM)
    alpha.ended()
    beta.file.write_text(beta.file.read_text() + '\n[task]\nname = "digits"\nmodel = "softmax"\n')
    beta.state.mkdir(exist_ok=True, mode=0o700)
    shutil.copytree(alpha.state / "checkpoints", beta.state / "checkpoints")
    beta.start()
    assert beta.ended() == 2, beta.log_end()
    assert "the checkpoints are of another model" in beta.log()


def test_a_disk_that_takes_no_checkpoint_does_not_stop_the_site(sites: list[Daemon]) -> None:
    alpha = sites[0]
    alpha.start()
    alpha.until(lambda _: bool(named(alpha, "checkpoint")))
    (alpha.state / "checkpoints").rename(alpha.state / "away")
    (alpha.state / "checkpoints").write_text("no folder")
    alpha.until(lambda status: status["events"].get("checkpoint_failed", 0) > 0 and status["round"] > 3)
    (alpha.state / "checkpoints").unlink()
    before = len(named(alpha, "checkpoint"))
    alpha.until(lambda _: len(named(alpha, "checkpoint")) > before)
    assert alpha.log().count("the site works on, and tries again") == 1


def test_twenty_kills_at_random_moments(sites: list[Daemon]) -> None:
    """Nothing that was checkpointed is lost, no start fails, and no neighbour ends."""
    draw = random.Random(5)
    for daemon in sites:
        daemon.start()
    alpha, beta, gamma = sites
    newest = 0
    for _ in range(20):
        deadline = time.monotonic() + draw.uniform(0.3, 1.5)
        while time.monotonic() < deadline:
            assert alpha.process is not None
            assert alpha.process.poll() is None, alpha.log_end()
            time.sleep(0.02)
        alpha.kill(signal.SIGKILL)
        alpha.ended()
        if (alpha.state / "checkpoints").exists() and Checkpoints(alpha.state / "checkpoints").load() is not None:
            assert saved_round(alpha) >= newest
            newest = saved_round(alpha)
        alpha.start()
    alpha.until(lambda status: status["round"] > newest)
    assert newest > 0
    for other in (beta, gamma):
        other.until_neighbour(alpha, lambda each: each["state"] == "joined")
    assert not named(alpha, "checkpoint_damaged")
