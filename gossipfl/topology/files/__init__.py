"""Graphs in files: edge lists, GraphML, JSON; what a file says is checked and repaired openly."""
