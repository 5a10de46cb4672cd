"""Loads the plugin; everything else lives in hostfault/plugin/."""

pytest_plugins = ["hostfault.plugin.session"]
