"""The container's health check: `python -m cgm_proxy.healthcheck` exits with 0 if the proxy answers that it is alive.

Docker starts it every few seconds, so it is a module of its own that imports little. Kubernetes needs no such program: it sends
its probes to the operations port itself.
"""

import http.client
import sys

from cgm_proxy.settings.loading import ListenSettings, load

#: Must be shorter than --timeout in the Dockerfile (seconds).
TIMEOUT = 3.0
#: Addresses that mean "all addresses of this machine", and the one to connect to in their place.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 -- compared, never bound


def alive(listen: ListenSettings) -> bool:
    """Whether /healthz on the operations port answers 200; a proxy that can't be reached is not alive."""
    host = LOOPBACK.get(listen.ops_host, listen.ops_host)
    connection = http.client.HTTPConnection(host, listen.ops_port, timeout=TIMEOUT)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(0 if alive(load().listen) else 1)
