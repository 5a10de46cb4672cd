"""Find the commit, or the packaged kernel, with which a verdict changed; see docs/bisecting.md.

``tree -> build -> runs of pytest -> decision -> exit code``, each a module of its own.
"""
