"""The demonstration: two gateways, a producer and a consumer on this machine, with real proxies and data."""
