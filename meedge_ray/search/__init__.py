"""Pure algorithms over numbers: placement, survival. NumPy is the reference, C the speed."""
