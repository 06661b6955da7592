"""Byzantine attacks: what lying nodes say in place of their models, and what they train on.

A *lone* attack (``broadcast``, ``data``) publishes one vector to all alike and knows what any node knows, so that real
agents can play it. A *conspiracy* (``moments``, ``fang``, ``mixing``, ``adaptive``) is omniscient, tells each target
its own lie, and exists in the simulator alone.
"""

from gossipfl.robust.attacks.adaptive import Spectral, ThresholdHugging
from gossipfl.robust.attacks.broadcast import Duplicate, Gaussian, OnOff, SignFlip, SlowDrift, Sybil
from gossipfl.robust.attacks.data import Backdoor, FeatureNoise, LabelFlip
from gossipfl.robust.attacks.fang import KrumAttack, Trim
from gossipfl.robust.attacks.mixing import Dissensus, Isolation, SampleDuplicating
from gossipfl.robust.attacks.moments import Alie, GaussianMean, InnerProduct, MinMax, MinSum, SignFlipMean

__all__ = [
    "Alie",
    "Backdoor",
    "Dissensus",
    "Duplicate",
    "FeatureNoise",
    "Gaussian",
    "GaussianMean",
    "InnerProduct",
    "Isolation",
    "KrumAttack",
    "LabelFlip",
    "MinMax",
    "MinSum",
    "OnOff",
    "SampleDuplicating",
    "SignFlip",
    "SignFlipMean",
    "SlowDrift",
    "Spectral",
    "Sybil",
    "ThresholdHugging",
    "Trim",
]
