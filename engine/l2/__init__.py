"""Storage behind adapters: what L1 must let go stays here, and comes back verified."""
