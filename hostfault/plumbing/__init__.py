"""What everything else stands on: errors, waiting, child processes, the cache."""
