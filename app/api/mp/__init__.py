"""Routes of the cache server."""
