"""The HTTP API, one folder per category of routes."""
