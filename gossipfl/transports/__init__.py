"""Transports: memory, MQTT and the broker that a testbed brings along."""
