"""Host memory: one shared-memory pool and the table of what is in it."""
