"""Tasks: a model, data and a loss; partitioners and learners."""
