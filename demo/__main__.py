"""A real transformer continues a prompt from KV that another process computed: same tokens, sooner.

    make demo                                             with a Larder of its own
    make demo ARGS="--url tcp://127.0.0.1:5555 --http http://127.0.0.1:8080"      with one that runs already

Ends with 1 when a token differs or the hit does not show in /metrics.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from demo.larder_server import ROOT, Addresses, read_url, running_larder

PROMPT_TOKENS = 2000
NEW_TOKENS = 32
PROCESS_TIMEOUT_S = 300
HIT_METRIC = "lmcache_mp_lookup_hit_tokens_total"


def metric(addresses: Addresses, name: str) -> float:
    """The value of a series without labels, as a scrape shows it."""
    found = re.search(rf"^{name} (\S+)$", read_url(addresses.http + "/metrics"), re.MULTILINE)
    if not found:
        raise RuntimeError(f"{addresses.http}/metrics has no {name}")
    return float(found[1])


def run_process(module: str, *arguments: object) -> dict[str, Any]:
    """What a program of the demonstration printed, run as a process of its own."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=PROCESS_TIMEOUT_S, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def demonstrate(addresses: Addresses) -> bool:
    """Runs both processes, prints what they found, and says whether it is as it should be."""
    print(f"Larder: data plane {addresses.data_plane}, HTTP {addresses.http}")
    first = run_process("demo.prefill", addresses.data_plane, PROMPT_TOKENS)
    print(
        f"process 1: prefilled {PROMPT_TOKENS} tokens in {first['prefill_s']:.2f} s, "
        f"stored the KV of {first['stored_tokens']} in {first['store_s'] * 1e3:.1f} ms"
    )
    hits_before = metric(addresses, HIT_METRIC)
    second = run_process("demo.resume", addresses.data_plane, PROMPT_TOKENS, NEW_TOKENS)
    hits = metric(addresses, HIT_METRIC) - hits_before
    cached, computed = second["with_larder"], second["without"]
    same = cached["tokens"] == computed["tokens"] and len(cached["tokens"]) == NEW_TOKENS
    print(f"process 2: found {second['hit_tokens']} tokens, continued with {NEW_TOKENS}")
    print(f"  with Larder     first token after {cached['first_token_s']:6.3f} s   {shown(cached['tokens'])}")
    print(f"  without         first token after {computed['first_token_s']:6.3f} s   {shown(computed['tokens'])}")
    print(f"  {'the same tokens' if same else 'DIFFERENT TOKENS'}, ", end="")
    print(f"{computed['first_token_s'] / cached['first_token_s']:.1f} times sooner")
    print(f"/metrics: {HIT_METRIC} rose by {hits:.0f}")
    return same and hits == second["hit_tokens"] == first["stored_tokens"]


def shown(tokens: list[int]) -> str:
    return " ".join(map(str, tokens[:8])) + " ..."


def main() -> int:
    parser = argparse.ArgumentParser(prog="demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="data plane of a Larder that runs already")
    parser.add_argument("--http", help="its HTTP address")
    given = parser.parse_args()
    if (given.url is None) != (given.http is None):
        parser.error("--url and --http go together")
    if given.url:
        return 0 if demonstrate(Addresses(given.url, given.http)) else 1
    with tempfile.TemporaryDirectory(prefix="larder-demo-") as directory, running_larder(Path(directory)) as addresses:
        return 0 if demonstrate(addresses) else 1


if __name__ == "__main__":
    sys.exit(main())
