"""`cgm-proxy` without verdict cache, to measure what the cache is worth: `python no_verdict_cache.py serve`."""

import sys

from cgm_proxy import cli
from cgm_proxy.core.rules import rulebook

if __name__ == "__main__":
    rulebook.VerdictCache = lambda: None  # type: ignore[assignment, misc, return-value]
    sys.exit(cli.main())
