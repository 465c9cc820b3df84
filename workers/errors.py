"""What stops a process of ours before it serves."""

#: Exit code of a process that cannot start, and would not on another try either.
EXIT_CANNOT_START = 78


class CannotStart(Exception):
    """The text is for the operator: it names the setting, its value, and what is wrong."""
