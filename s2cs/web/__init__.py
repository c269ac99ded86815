"""What the gateway serves over HTTP: metrics and health for monitoring, and a page for people."""
