"""Data servers as pods: the cluster's scheduler chooses the gateway node of each session."""
