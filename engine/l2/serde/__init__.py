"""What may happen to an object's bytes on their way to storage: made smaller, coarser, or unreadable for others."""
