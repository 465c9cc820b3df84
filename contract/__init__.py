"""What the web tier and the workers agree on: settings, Redis keys, commands, snapshots, the engine's heartbeat."""
