"""The agent's events as log lines that an operator can read."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

LINES: Mapping[str, tuple[int, str]] = {
    "link-up": (logging.INFO, "connected to the broker at {detail}"),
    "link-down": (logging.WARNING, "lost the broker, trying again until it answers: {detail}"),
    "link-refused": (logging.WARNING, "a connection with {peer} was refused: {detail}"),
    "join_timeout": (logging.WARNING, "starting without {silent}: not heard yet"),
    "neighbour_joined": (logging.INFO, "{peer} joined at its round {round}"),
    "neighbour_restarted": (logging.INFO, "{peer} was restarted"),
    "neighbour_lost": (logging.WARNING, "{peer} is lost: silent for {silent_s:.0f} s"),
    "neighbour_back": (logging.INFO, "{peer} is back"),
    "neighbour_left": (logging.INFO, "{peer} said good-bye"),
    "neighbour_refused": (
        logging.ERROR,
        "{peer} is refused: its model has another {reason} than ours; give both sites the same task and model",
    ),
    "initial_model_differs": (
        logging.WARNING,
        "{peer} started from another initial model; give both sites the same model_seed and versions",
    ),
    "divergence": (logging.ERROR, "training made the model infinite in round {round}; it was set back"),
    "update_refused": (logging.WARNING, "{peer} sent an update that cannot be used: {detail}"),
    "codec_unsupported": (logging.WARNING, "{peer} uses a codec that this version does not know; keyframes serve"),
    "digest_mismatch": (logging.WARNING, "the copy of {peer}'s model is not what it says; asking for a keyframe"),
    "absurd_norm": (logging.WARNING, "{peer} sent a model of absurd size; it is left out"),
    "body_abandoned": (logging.WARNING, "gave up a large message of {peer}: {missing_chunks} chunks never came"),
    "offence": (logging.WARNING, "{peer} broke the protocol ({reason}), for the {count}. time"),
    "peer_muted": (logging.ERROR, "{peer} is muted for {seconds:.0f} s ({reason})"),
    "caught_up": (logging.INFO, "{rounds} rounds behind: starting from the model of {peer}"),
    "donor_refused": (
        logging.WARNING,
        "the model of {peer} is worse on this site's data ({loss:.4g}, own {own_loss:.4g})",
    ),
    "not_caught_up": (logging.ERROR, "{rounds} rounds behind, and no neighbour's model will do: starting alone"),
    "mixing_refused": (
        logging.WARNING,
        "the average of round {round} is not taken: its loss here is {loss:.4g}, that of the own model {own_loss:.4g}",
    ),
    "membership": (logging.INFO, "membership version {version} is in force, with {members} sites"),
    "membership_refused": (logging.ERROR, "a membership is not taken: {detail}"),
    "removed": (logging.ERROR, "this site is no member any more, as of membership version {version}: ending"),
    "equivocation": (logging.ERROR, "{peer} has signed {detail}; it is not heard any more, and the proof is kept"),
    "miss": (logging.DEBUG, "round {round} went on without {peer}"),
    "resync": (logging.DEBUG, "asked {peer} for what is missing"),
    "keyframe": (logging.DEBUG, "took a keyframe of {peer}"),
}

PEER_LINES: Mapping[str, tuple[int, str]] = {
    "link-up": (logging.INFO, "{peer} connected at {detail}"),
    "link-down": (logging.WARNING, "lost the link to {peer}: {detail}"),
}
"""Lines of events that mean something else where they come with a peer."""


def narrate(event: str, fields: Mapping[str, Any]) -> None:
    """Log one event; one that has no line of its own is logged as it is, at debug level."""
    lines = PEER_LINES if "peer" in fields and event in PEER_LINES else LINES
    level, line = lines.get(event, (logging.DEBUG, ""))
    if not log.isEnabledFor(level):
        return
    shown = {key: ", ".join(value) if isinstance(value, list) else value for key, value in fields.items()}
    try:
        text = line.format_map(shown)
    except (KeyError, ValueError, TypeError):  # a newer core may say less, or more, of an event
        text = ""
    log.log(level, "%s", text or f"{event} {shown}", extra={"event": event, "fields": dict(fields)})
