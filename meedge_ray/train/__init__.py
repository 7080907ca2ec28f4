"""From a model and data to a bundle, and from a bundle to a report. Runs without Ray."""
