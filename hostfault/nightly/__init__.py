"""``ci/nightly``: runs the suite on several kernels within a budget, and says what is news.

It is built on top of the suite and knows nothing of its inside: it starts pytest, and reads what
a run leaves (pytest-reportlog's lines and the folder of each test).
"""
