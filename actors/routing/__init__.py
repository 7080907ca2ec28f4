"""Requests of the cluster, routed to the device whose answer is worth most."""
