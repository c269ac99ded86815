"""Applications that are sent through a tunnel: each module has a server, and a client that measures."""
