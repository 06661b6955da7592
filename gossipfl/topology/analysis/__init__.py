"""What a graph promises to gossip, and what Byzantine nodes can take from it."""
