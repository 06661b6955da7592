"""Experiments: a grid of runs from one file, carried out by many processes, resumable, and what they show together."""
