"""Setting up a federation: signed memberships, and for each site and the broker a folder with all that it needs."""
