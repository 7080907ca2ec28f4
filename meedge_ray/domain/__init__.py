"""Words of the project as frozen dataclasses: what every other floor speaks in."""
