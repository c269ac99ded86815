"""What the gateway tells over HTTP: its metrics and its health."""
