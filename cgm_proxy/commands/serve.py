"""`cgm-proxy serve`: prepare the process, then run the proxy until it is stopped."""

import gc
import signal
import sys

import uvloop

from cgm_proxy.observability.logs import start as start_logs
from cgm_proxy.rulekit.lint import load_rules
from cgm_proxy.server.proxy import RELOADING, serve
from cgm_proxy.settings.loading import Settings

#: How long a thread that judges may keep the event loop waiting (seconds). With Python's 5 ms, small GETs beside a submission of
#: 25,920 readings took about twice as long (median 14 ms instead of 8, 99th percentile 100 ms instead of 60), and the submission
#: was no faster.
SWITCH_INTERVAL = 0.001


def run(settings: Settings) -> None:
    """Run the proxy; return when it was stopped."""
    # Until the server handles SIGHUP, this signal would end the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, RELOADING)
    rules = load_rules(settings.rules)
    start_logs(settings.log_level)
    # Rules and models live as long as the process. The garbage collector should not visit them again and again while a
    # submission creates thousands of entries.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    sys.setswitchinterval(SWITCH_INTERVAL)
    uvloop.run(serve(settings, rules))
