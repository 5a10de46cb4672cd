"""The agent: runs inside the host, with the standard library only."""
