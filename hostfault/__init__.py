"""hostfault: does a guest task get an error when the host cannot back a page?"""
