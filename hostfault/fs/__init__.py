"""Suites of others for file systems, run on the real mount in a real guest: ``ci/fs``.

``send`` (programs into the guest) ``-> suites`` (what is run, and what its words mean)
``-> __main__`` (builds, runs and tells); docs/back-end.md has what came of it.
"""
