"""The testbed: many agents on one machine, in virtual time or as processes."""
