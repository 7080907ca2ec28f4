"""The placement service: placements, units, and devices without Ray, over HTTP; Ray Serve runs it."""
