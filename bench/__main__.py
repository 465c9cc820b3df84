"""`python -m bench [--json] [NAME ...]`: runs the named benchmarks, or all, one after the other.

Ends with 1 when a row missed its limit, so that a person looking for a regression can bisect with it; nothing
in the test suite depends on a measured time. With --json each row is a line of JSON and nothing else is printed.
"""

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence

from bench.report import conditions, print_rows

QUESTIONS = (
    "copies",
    "short_operations",
    "web_tier",
    "isolation",
    "start_times",
    "index_memory",
    "l2_adapters",
    "l2_catalog",
    "l2_serde",
    "l2_prefix",
)


def main(arguments: Sequence[str]) -> int:
    as_json = "--json" in arguments
    names = [argument for argument in arguments if argument != "--json"]
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        print(f"no benchmark called {', '.join(unknown)}; there are {', '.join(QUESTIONS)}", file=sys.stderr)
        return 2
    if not as_json:
        print(conditions())
    missed = 0
    for name in names or QUESTIONS:
        module = importlib.import_module(f"bench.{name}")
        if not as_json:
            print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        rows = module.measure()
        if as_json:
            for row in rows:
                print(json.dumps({"benchmark": name, **dataclasses.asdict(row), "is_met": row.is_met}), flush=True)
        else:
            print_rows(rows)
        missed += sum(not row.is_met for row in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
