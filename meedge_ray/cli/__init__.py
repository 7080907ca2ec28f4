"""The `meedge` command."""
