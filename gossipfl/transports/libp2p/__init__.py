"""Frames between libp2p hosts that dial each other: no broker anywhere. Needs the extra ``gossipfl[libp2p]``."""
