"""The domain: what a case is, what was observed, what it proves. No side effects."""
