# The production image: locked wheels and the worker, without shell, pip or the embedded Azure, as a user without rights.
# Which index pip asks, and through which authority, comes in as build secrets (docs/deploy.md); nothing of it stays.
# Both bases have Python 3.13: the bytecode and the wheels made in the first must suit the second.
FROM python:3.13-slim-trixie AS build
WORKDIR /src
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# strip takes 26 MB of debugging symbols out of the wheels
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends binutils && rm -rf /var/lib/apt/lists/*
COPY requirements/build.txt requirements/runtime.txt requirements/
# Libraries are kept as bytecode only, which saves 30 MB; a traceback still names their files and lines.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf \
    --mount=type=secret,id=ca.crt,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m pip install --require-hashes --only-binary :all: --no-compile --target /build-tools -r requirements/build.txt \
    && python3 -m pip install --require-hashes --only-binary :all: --no-compile --target /app/lib -r requirements/runtime.txt \
    && find /app/lib -name '*.so' -exec strip --strip-unneeded {} + \
    && python3 -m compileall -q -b -j 0 --invalidation-mode unchecked-hash -s /app -p /opt/aoai-worker /app/lib \
    && find /app/lib -name '*.py' -delete \
    && rm -rf /app/lib/bin
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY worker worker
RUN PYTHONPATH=/build-tools python3 -m pip install --no-index --no-deps --no-build-isolation --no-compile --target /app/lib . \
    && rm -rf /app/lib/bin \
    && python3 -m compileall -q --invalidation-mode unchecked-hash -s /app -p /opt/aoai-worker /app/lib/worker \
    && printf '#!/usr/bin/python3.13\nfrom worker.__main__ import main\n\nmain()\n' >/app/aoai-worker \
    && chmod 0755 /app/aoai-worker

FROM gcr.io/distroless/python3-debian13:nonroot
ARG VERSION=0.0.0+unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="aoai-worker" \
      org.opencontainers.image.description="A keyless streaming batch worker for Azure OpenAI on AKS, fed through Azure Service Bus." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /app/lib /opt/aoai-worker/lib
COPY --from=build /app/aoai-worker /usr/local/bin/aoai-worker
ENV PYTHONPATH=/opt/aoai-worker/lib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PATH=/usr/local/bin:/usr/bin
USER 65532:65532
EXPOSE 9090
ENTRYPOINT ["/usr/local/bin/aoai-worker"]
CMD ["run"]
