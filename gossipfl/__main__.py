"""``python -m gossipfl``: the command line."""

from gossipfl.cli import main

main()
