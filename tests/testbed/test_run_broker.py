from __future__ import annotations

import asyncio
import os
import signal
import stat
import tempfile
from pathlib import Path

import pytest

from gossipfl.sections import BrokerSpec
from gossipfl.testbed.broker import RESTART_S, RunBroker, run_broker
from gossipfl.testbed.wires import check_connection
from gossipfl.transports.mqtt import MqttTransport


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A test's own folder lies too deep for a socket's path.
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)


def connect(broker: RunBroker) -> None:
    asyncio.run(check_connection(MqttTransport("ann", ["bob"], broker.options)))


def test_the_embedded_broker_listens_in_a_private_folder(temporary: Path) -> None:
    with run_broker(BrokerSpec(), "test") as broker:
        assert broker.options.socket_path is not None
        folder = Path(broker.options.socket_path).parent
        assert folder.parent == temporary
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        connect(broker)
    assert list(temporary.iterdir()) == []


def test_a_folder_too_deep_for_a_socket_takes_a_port(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = temporary / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with run_broker(BrokerSpec(), "test") as broker:
        assert (broker.options.socket_path, broker.options.host) == (None, "127.0.0.1")
        connect(broker)


def test_a_named_broker_is_somebody_elses(temporary: Path) -> None:
    spec = BrokerSpec.model_validate(
        {"host": "broker.example", "username": "u", "password": "p", "tls": {"cert": "c.pem", "key": "k.pem"}}
    )
    with run_broker(spec, "test") as broker:
        options = broker.options
        assert list(temporary.iterdir()) == []
        asyncio.run(broker.keep(lambda _: pytest.fail("nothing to start again")))
    assert (options.host, options.port, options.federation) == ("broker.example", 8883, "test")
    assert (options.username, options.password) == ("u", "p")
    assert options.tls is not None
    assert (options.tls.ca, options.tls.certificate, options.tls.key) == (None, "c.pem", "k.pem")


def test_a_broker_that_keeps_dying_is_started_again_now_and_then() -> None:
    async def program(broker: RunBroker) -> list[float]:
        loop = asyncio.get_running_loop()
        deaths: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
        keeping = asyncio.create_task(broker.keep(lambda status: deaths.put_nowait((status, loop.time()))))
        times = []
        for _ in range(3):
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGKILL)
            status, at_s = await deaths.get()
            assert status == -signal.SIGKILL
            times.append(at_s)
        keeping.cancel()
        await asyncio.wait([keeping])
        return times

    with run_broker(BrokerSpec(), "test") as broker:
        first, second, third = asyncio.run(program(broker))
        assert min(second - first, third - second) >= RESTART_S
        connect(broker)
