"""The cache itself: what is kept, where, for whom, and for how long. Read engine.py first.

Knows no HTTP, no Flask, no Redis command queue; looks down only:
dataplane -> engine.py -> movement -> l1, l2, device -> the plain modules.
"""
