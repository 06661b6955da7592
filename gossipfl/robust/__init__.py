"""Robust rules and attacks: pure functions of tensors."""
