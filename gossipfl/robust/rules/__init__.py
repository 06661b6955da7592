"""The field's robust rules, each written once for any number of nodes."""
