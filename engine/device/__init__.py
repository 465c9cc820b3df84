"""Registered KV tensors of clients, and copies between them and cache slots."""
