"""The server: routes, limits, protocol, the process."""
