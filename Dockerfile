# Built by plain `docker build -t cgm-proxy .`, without BuildKit's additions. Runs read-only, as any user without rights:
#   docker run --read-only --cap-drop ALL -p 8080:8080 -e CGM_PROXY_UPSTREAM_URL=http://hapi:8080/fhir cgm-proxy
# The Python release is the one that the tests run on; its patch level follows the base image's security updates.

FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Only wheels, whose hashes are locked: nothing is compiled, nothing unknown runs. This layer changes with the locks alone.
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
# The root file system may be read-only: bytecode was written above, and nothing is written here.
ENV PATH=/opt/cgm-proxy/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /tmp
# A number, so that Kubernetes can see that it is not root; it owns no file.
USER 10001:10001
# Public, and operations (never publish the second).
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Settings come from CGM_PROXY_SETTINGS and the environment here, so that the check finds the port that they name.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-m", "cgm_proxy.healthcheck"]
ENTRYPOINT ["cgm-proxy"]
CMD ["serve"]
