"""The processes: the engine worker, and the launcher that starts it beside Redis and gunicorn."""
