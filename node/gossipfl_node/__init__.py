"""What is deployed at a site: the node daemon."""
