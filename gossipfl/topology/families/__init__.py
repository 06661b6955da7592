"""Graph families: rings, lattices, random graphs, sites in the plane; by name."""
