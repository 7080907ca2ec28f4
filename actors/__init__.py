"""Thin Ray shells over the floors below: the placement service, local clusters, device actors, the fleet."""
