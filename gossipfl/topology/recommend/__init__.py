"""Better graphs and better weights within limits."""
