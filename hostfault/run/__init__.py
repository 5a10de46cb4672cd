"""One case from beginning to end, and what the cases of a run share."""
