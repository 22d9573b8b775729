# Build it with `docker build -t cgm-proxy .`; it needs no BuildKit. It runs read-only and without privileges:
#   docker run --read-only --cap-drop ALL -p 8080:8080 -e CGM_PROXY_UPSTREAM_URL=http://hapi:8080/fhir cgm-proxy
# The tests run on the same minor release of Python; its patch level follows the security updates of the base image.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Only wheels with locked hashes: nothing is compiled, and no unknown code runs. Only a lock file changes this layer.
COPY requirements.lock requirements-build.lock ./
RUN python -m pip install --require-hashes --only-binary :all: -r requirements-build.lock \
    && python -m venv /opt/cgm-proxy \
    && /opt/cgm-proxy/bin/pip install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md ./
COPY rules rules
COPY cgm_proxy cgm_proxy
RUN python -m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && /opt/cgm-proxy/bin/pip install --no-deps --no-index dist/*.whl \
    && /opt/cgm-proxy/bin/pip uninstall --yes setuptools pip

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="cgm-proxy" \
      org.opencontainers.image.description="Makes any FHIR R4 server a conformant receiver of continuous glucose monitoring data" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/cgm-proxy /opt/cgm-proxy
# The root file system may be read-only: the bytecode is already compiled, and the proxy writes no files here.
ENV PATH=/opt/cgm-proxy/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
# A number, by which Kubernetes can see that the user is not root. The user owns no files.
USER 10001:10001
# The public port, and the operations port, which must not be published.
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# The check reads CGM_PROXY_SETTINGS and the environment, as the proxy does, to find the operations port.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "cgm_proxy.healthcheck"]
ENTRYPOINT ["cgm-proxy"]
CMD ["serve"]
