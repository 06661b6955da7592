"""Puts this folder on the import path, so that tests in sub-folders can import its modules."""

from hypothesis import settings

# How long one example takes says more about the machine than about the code.
settings.register_profile("gossipfl", deadline=None)
settings.load_profile("gossipfl")
