"""Content-addressed store of units, and the one manifest that names them."""
