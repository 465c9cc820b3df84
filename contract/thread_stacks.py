"""What the threads of this process are doing, as text for people."""

import os
import sys
import threading
import traceback
from pathlib import Path

#: Of a thread's stack the innermost frames, of a process so many threads: a runaway recursion stays readable.
MAX_FRAMES = 60
MAX_THREADS = 500


def process_name() -> str:
    """The name of this process as the operating system has it, with its id."""
    try:
        name = Path("/proc/self/comm").read_text().strip()
    except OSError:
        name = Path(sys.argv[0]).name
    return f"{name} (pid {os.getpid()})"


def thread_blocks(name: str = "", thread_id: int | None = None) -> list[str]:
    """One block of lines per live Python thread; `name` is part of its name, in any case."""
    frames = sys._current_frames()
    found = [
        thread
        for thread in threading.enumerate()
        if name.lower() in thread.name.lower() and thread_id in (None, thread.ident)
    ]
    blocks = []
    for thread in found[:MAX_THREADS]:
        frame = frames.get(thread.ident or 0)
        stack = "" if frame is None else "".join(traceback.format_stack(frame)[-MAX_FRAMES:])
        blocks.append(f"Thread: {thread!r}\nStack trace:\n{stack}")
    return blocks
