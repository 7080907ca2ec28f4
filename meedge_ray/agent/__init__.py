"""The agent: the process on a device that keeps its model answering."""
