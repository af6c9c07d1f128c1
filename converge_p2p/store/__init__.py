"""Where a node keeps what must outlive it: keys and values, the operation log, and the key file."""
