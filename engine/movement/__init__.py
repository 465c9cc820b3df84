"""Moving objects between L1 and L2: writing back, loading for lookups and ahead of traffic, evicting from storage."""
