"""Attacks on the protocol itself: Byzantine nodes that sign what no honest node would, played on any wire.

The attacks of ``gossipfl.robust`` lie in a model and speak the protocol correctly. A saboteur does the opposite: its
node trains and gossips as honest ones do, and what it says is twisted on its way to the wire.
"""
