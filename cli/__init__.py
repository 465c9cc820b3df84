"""The `larder` command: an operator's hands on a running server, over HTTP.

module          what it is for
--------------  ---------------------------------------------------------------------
program.py      the commands by name, each imported when it is called; exit codes
connection.py   one request to the server: address, token, deadline, what went wrong
options.py      what every command takes: --url, --json, --timeout
text.py         sizes, times and names as people read and write them
render.py       tables on a terminal, aligned text elsewhere, JSON when asked
data_plane.py   one message over the data plane
commands/       a file for each command or family of commands

Imports of ours: contract alone. Whatever takes time to import (rich, zmq) is imported where it is used.
"""
