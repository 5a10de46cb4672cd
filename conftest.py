"""Loads the plugin; everything else lives in hostfault/plugin.py."""

pytest_plugins = ["hostfault.plugin.session"]
