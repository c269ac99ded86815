"""The S2DS contract over the LAN: a gateway node serves it, and S2CS calls it."""
