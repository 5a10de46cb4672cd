"""hostfault: does a guest task get an error when the host cannot back a page?"""

__version__ = "0.2.0"
