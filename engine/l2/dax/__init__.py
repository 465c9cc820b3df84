"""Objects in fixed slots of mapped devices: the slot format, the tables over several devices, and their changes."""
