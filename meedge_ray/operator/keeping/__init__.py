"""What keeps the operator running: its home, its processes, and who starts again what died."""
