"""Two or more S2CS of one facility on a shared store, etcd: one leads, the others pass calls on to it."""
