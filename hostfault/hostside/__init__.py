"""Programs that run inside the host: standard library only, no import from outside this package."""
