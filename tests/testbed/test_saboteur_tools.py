"""What saboteurs work with, one by one: their seat at the wire, their forge, and what each forgery does to a core."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from lab import Lab, Letter

from gossipfl.clock import run_virtual
from gossipfl.errors import TransportClosed
from gossipfl.identity import Verifier
from gossipfl.messages import Bye, Envelope, Kind, Update, parse_frame
from gossipfl.testbed.saboteurs.base import Cover, Parcel, Saboteur
from gossipfl.testbed.saboteurs.flood import StaleFlood
from gossipfl.testbed.saboteurs.forge import Forge
from gossipfl.testbed.saboteurs.layouts import LayoutLie
from gossipfl.testbed.saboteurs.numbers import POISONS, BadNumbers
from gossipfl.testbed.saboteurs.replay import EARLIER, Replay
from gossipfl.testbed.saboteurs.silence import Silence
from gossipfl.testbed.saboteurs.transport import SabotagedTransport
from gossipfl.transports.memory import MemoryNetwork, MemoryTransport


def cover_of(lab: Lab, node: int) -> Cover:
    core = lab.cores[node]
    return Cover(core, Forge(lab.identities[node], core.exchange.post), Random(0))


def pass_on(lab: Lab, saboteur: Saboteur, letters: Sequence[Letter]) -> None:
    """Take letters off the wire and deliver what the saboteur makes of them."""
    for letter in letters:
        lab.wire.remove(letter)
        send(lab, saboteur.pass_on(Parcel((lab.ids[letter.recipient],), letter.frame)))


def send(lab: Lab, parcels: Sequence[Parcel]) -> None:
    for parcel in parcels:
        for peer in parcel.recipients:
            lab.receive(lab.index[peer], parcel.frame)


class Speaker(Saboteur):
    """Says one thing again and again, and fails when it has nothing to say."""

    every_s = 1.0

    def __init__(self, *said: Parcel) -> None:
        self.said = list(said)
        self.heard: list[bytes] = []

    def overhear(self, frame: Any) -> None:
        self.heard.append(bytes(frame))

    def act(self) -> Sequence[Parcel]:
        return [self.said.pop()]


class TestSeat:
    def pair(self, saboteur: Saboteur) -> tuple[SabotagedTransport, MemoryTransport]:
        network = MemoryNetwork()
        return SabotagedTransport(MemoryTransport(network, "a", ["b"]), saboteur), MemoryTransport(network, "b", ["a"])

    def test_one_who_does_nothing_changes_nothing(self) -> None:
        async def scene() -> None:
            one, other = self.pair(Saboteur())
            await one.start()
            await other.start()
            assert await one.send(["b"], b"there", bulk=True)
            assert (await other.receive()).frame == b"there"
            assert await other.send(["a"], b"back")
            assert (await one.receive()).frame == b"back"
            assert (await one.events()).state == "up"
            assert (one.counters.frames_sent, one.counters.frames_received) == (1, 1)
            await one.close()
            with pytest.raises(TransportClosed):
                await one.send(["b"], b"late")
            await other.close()

        run_virtual(scene())

    def test_it_hears_and_speaks_in_its_own_time(self) -> None:
        async def scene() -> None:
            speaker = Speaker(Parcel(("b",), b"two"), Parcel(("b",), b"one"))
            one, other = self.pair(speaker)
            await one.start()
            await other.start()
            loop = asyncio.get_running_loop()
            assert [((await other.receive()).frame, loop.time()) for _ in range(2)] == [(b"one", 1.0), (b"two", 2.0)]
            await other.send(["a"], b"heard")
            await one.receive()
            assert speaker.heard == [b"heard"]
            await one.close()
            await asyncio.sleep(5.0)
            assert len(other.inbox) == 0
            await other.close()

        run_virtual(scene())

    def test_its_mistakes_are_not_lost(self) -> None:
        async def scene() -> None:
            one, _ = self.pair(Speaker())
            await one.start()
            await asyncio.sleep(2.0)
            with pytest.raises(IndexError):
                await one.close()

        run_virtual(scene())


class TestForge:
    def test_a_rewritten_letter_has_the_number_and_the_signature_of_the_first(self) -> None:
        lab = Lab(2).start()
        forge = cover_of(lab, 1).forge
        first = lab.publish(1, torch.ones(64))[0].frame
        letter = forge.read(first)
        assert letter is not None
        assert isinstance(letter.body, Update)
        second = forge.rewrite(letter, Update(7, 9, bytes(32), 1, memoryview(b"else")))
        one, two = parse_frame(first), parse_frame(second)
        assert isinstance(one, Envelope)
        assert isinstance(two, Envelope)
        assert (one.header.incarnation, one.header.sequence) == (two.header.incarnation, two.header.sequence)
        assert one.header.digests != two.header.digests
        assert Verifier(lab.identities[1].public_key).verify(two.signed, two.signature)
        assert forge.read(forge.rewrite(letter, letter.body)) == letter

    def test_new_letters_are_numbered_among_the_nodes_own(self) -> None:
        lab = Lab(2, mode="async").start()
        forge = cover_of(lab, 1).forge
        frames = [lab.publish(1)[0].frame, forge.write(Kind.BYE, Bye()), lab.publish(1)[0].frame]
        numbers = [parse_frame(frame).header.sequence for frame in frames]  # type: ignore[union-attr]
        assert numbers == [numbers[0], numbers[0] + 1, numbers[0] + 2]


class TestForgeries:
    @pytest.mark.parametrize("poison", POISONS)
    def test_every_poison_is_refused_for_what_it_is(self, poison: str) -> None:
        lab = Lab(2, size=650, mode="async").start()
        saboteur = BadNumbers().saboteur(cover_of(lab, 1))
        version = POISONS.index(poison) or len(POISONS)
        for _ in range(version - 1):  # the truth; the saboteur sees it go by
            for letter in lab.publish(1, lab.models[1] + 0.5):
                saboteur.pass_on(Parcel((lab.ids[0],), letter.frame))
            lab.settle()
        assert lab.agree(0, 1)
        pass_on(lab, saboteur, lab.publish(1, lab.models[1] + 0.5))
        event = {"huge": "absurd_norm", "digest": "digest_mismatch"}.get(poison, "update_refused")
        assert [report.fields["version"] for report in lab.events(0, event)] == [version]
        assert lab.dropped(0) == ({"offence-codec": 1} if event == "update_refused" else {})
        lab.publish(0)
        assert lab.mix(0).verdicts == {}
        assert torch.isfinite(lab.models[0]).all()

    @pytest.mark.parametrize(("lie", "reason"), list(enumerate(["codec", "codec", "codec", "oversized"])))
    def test_updates_of_no_size_fit(self, lie: int, reason: str) -> None:
        lab = Lab(3, mode="async").start()
        saboteur = LayoutLie().saboteur(cover_of(lab, 2))
        (letter,) = (letter for letter in lab.publish(2) if letter.recipient == 1)
        for _ in range(lie):
            saboteur.pass_on(Parcel((lab.ids[1],), letter.frame))
        pass_on(lab, saboteur, [letter])
        assert lab.dropped(1) == {f"offence-{reason}": 1}
        assert lab.seen_by(1, 2).version == 0

    def test_every_other_neighbour_is_greeted_with_another_layout(self) -> None:
        lab = Lab(3)
        saboteur = LayoutLie().saboteur(cover_of(lab, 2))
        for node in (0, 1):
            lab.perform(node, lab.cores[node].start(lab.now))
        pass_on(lab, saboteur, lab.perform(2, lab.cores[2].start(lab.now)))
        assert [len(lab.events(node, "neighbour_refused")) for node in (0, 1)] == [1, 0]
        assert lab.seen_by(1, 2).speaks

    def test_an_earlier_life_is_believed_once_and_its_words_never(self) -> None:
        lab = Lab(2, mode="async")
        saboteur = Replay().saboteur(cover_of(lab, 1))
        lab.perform(0, lab.cores[0].start(lab.now))
        pass_on(lab, saboteur, lab.perform(1, lab.cores[1].start(lab.now)))
        assert [report.fields["incarnation"] for report in lab.events(0, "neighbour_restarted")] == [EARLIER + 1]
        lab.settle()
        pass_on(lab, saboteur, lab.publish(1, torch.ones(64)))
        lab.wait(1.0)
        assert lab.agree(0, 1)
        before = dict(lab.dropped(0))
        for _ in range(200):
            send(lab, saboteur.act())
        assert lab.dropped(0)["replay"] - before.get("replay", 0) == 200
        assert lab.agree(0, 1)
        assert lab.events(0, "offence") == []

    def test_nothing_in_a_flood_is_false_or_changes_anything(self) -> None:
        lab = Lab(2, mode="async").start()
        saboteur = StaleFlood(rate=1000).saboteur(cover_of(lab, 1))
        pass_on(lab, saboteur, lab.publish(1, torch.ones(64)))
        held, own = lab.seen_by(0, 1), lab.cores[0].exchange.own.digest
        state = (held.version, held.round, held.digest, held.claimed)
        for _ in range(20):
            send(lab, saboteur.act())
            lab.wire.clear()
        assert (held.version, held.round, held.digest, held.claimed) == state
        assert lab.cores[0].exchange.own.digest == own
        assert lab.events(0, "offence") == []
        assert set(lab.dropped(0)) == {"replay", "unsolicited-keyframe"}

    @pytest.mark.parametrize(("heartbeats", "said"), [(False, {Kind.HELLO}), (True, {Kind.HELLO, Kind.STATUS})])
    def test_silence_is_a_greeting_and_at_most_heartbeats(self, heartbeats: bool, said: set[Kind]) -> None:
        lab = Lab(2, size=300_000).start(joined=False)
        saboteur = Silence(heartbeats).saboteur(cover_of(lab, 1))
        lab.settle()
        lab.publish(1)
        lab.settle()
        lab.wait(1.5, delivering=False)
        lab.restart(1)
        sent = [letter for letter in lab.wire if letter.sender == 1]
        passed = {letter.kind for letter in sent if saboteur.pass_on(Parcel((lab.ids[0],), letter.frame))}
        assert passed == said
