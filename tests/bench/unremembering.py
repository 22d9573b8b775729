"""`cgm-proxy` whose rules remember no shape, to see what that memory is worth: `python unremembering.py serve`."""

import sys

from cgm_proxy import cli
from cgm_proxy.core.rules import rulebook

if __name__ == "__main__":
    rulebook.Shapes = lambda: None  # type: ignore[assignment, misc, return-value]
    sys.exit(cli.main())
