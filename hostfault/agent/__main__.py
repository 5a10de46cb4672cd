"""``python -m hostfault.agent``: see :mod:`hostfault.agent.server`."""

from hostfault.agent.server import main

main()
