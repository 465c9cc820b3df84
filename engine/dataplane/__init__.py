"""The data plane: the ZMQ server that inference clients talk to, and a small client of our own."""
