"""The control interface: HTTP with JSON on a Unix socket that only its owner may open."""
