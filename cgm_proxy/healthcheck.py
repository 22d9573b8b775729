"""The container's health check: `python -m cgm_proxy.healthcheck` exits 0 if the proxy says that it is alive.

A module of its own that imports little, for it starts every few seconds. Kubernetes asks the operations port itself.
"""

import http.client
import sys

from cgm_proxy.settings.loading import ListenSettings, load

#: Shorter than the Dockerfile's --timeout (seconds).
TIMEOUT = 3.0
#: Addresses that mean "all of this machine", and where to ask then.
ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- compared, never bound


def alive(listen: ListenSettings) -> bool:
    """Whether /healthz on the operations port answers 200; a proxy that can't be reached is not alive."""
    asked = http.client.HTTPConnection(ANY.get(listen.ops_host, listen.ops_host), listen.ops_port, timeout=TIMEOUT)
    try:
        asked.request("GET", "/healthz")
        return asked.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        asked.close()


if __name__ == "__main__":
    sys.exit(0 if alive(load().listen) else 1)
