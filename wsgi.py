"""The web tier for gunicorn: `gunicorn -c gunicorn.conf.py wsgi:app`. Settings come from the environment."""

import os
from dataclasses import replace

from gunicorn.http.errors import ParseException

from app import create_app
from app.backend import QueueBackend
from app.config import AppConfig
from app.errors import refuse_as
from contract.keys import Keys
from contract.log_lines import set_up_logging
from contract.settings import load_settings
from contract.version import commit_id

# Threads of a worker that commands may not occupy: probes and reads find one while the engine is slow.
THREADS_FOR_READS = 4

settings = load_settings(None, os.environ)
set_up_logging("web %(process)d", settings.log_level)

commit_id()  # read now: a checkout that changes later does not change what runs

app = create_app(
    replace(AppConfig.from_settings(settings), multiprocess_metrics=True),
    QueueBackend(
        settings.effective_redis_url,
        Keys(settings.instance_id),
        settings.run_dir,
        max_waiting=max(1, settings.web_threads - THREADS_FOR_READS),
        queue_limits=(settings.command_queue_max, settings.command_queue_max_bytes),
    ),
    categories=("common", "mp"),
)
refuse_as(app, ParseException, 400, "the chunks of the body are not as HTTP wants them")
