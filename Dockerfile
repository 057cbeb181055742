# Search by picture over HTTP, with the collection of this folder inside: docs/deploy.md.
#
#   docker build -t lookalike .
#   docker run --rm -p 127.0.0.1:8000:8000 -e LOOKALIKE_TOKEN=$(openssl rand -hex 16) lookalike
#
# TensorFlow, DVC and the data stay in the stage `bundle`. `make image` builds and asks it without a Docker engine.

# Its Python, 3.11, is the oldest that we promise, and the one that all pins were tested on.
ARG BASE=debian:12.15-slim

FROM ${BASE} AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS tools
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/tools
ENV PATH=/opt/tools/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# What serves: an environment of its own, without pip.
FROM tools AS packages
RUN python3 -m venv --without-pip /opt/lookalike
COPY docker/requirements.txt /src/docker/
RUN pip --python /opt/lookalike/bin/python install --require-hashes --requirement /src/docker/requirements.txt
COPY pyproject.toml requirements.in requirements.txt LICENSE /src/
COPY lookalike /src/lookalike
RUN grep --after-context 2 '^setuptools==' /src/requirements.txt > /src/build.txt \
    && pip install --require-hashes --requirement /src/build.txt \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /wheels /src \
    && pip --python /opt/lookalike/bin/python install --no-deps /wheels/*.whl

# What is served: the index from DVC's remote, or made anew if it is not of these settings; the network and thumbnails
# made here.
FROM tools AS bundle
WORKDIR /src
COPY requirements.txt ./
RUN pip install --require-hashes --requirement requirements.txt
COPY . ./
ENV PYTHONPATH=/src PYTHONDONTWRITEBYTECODE=1
RUN dvc config --local core.no_scm true \
    && dvc pull \
    && dvc repro model index \
    && python -m lookalike.cli bundle /bundle \
    && chmod -R a+rX /bundle

FROM python AS serving
LABEL org.opencontainers.image.title="Lookalike" \
      org.opencontainers.image.description="Content-based image search over HTTP" \
      org.opencontainers.image.licenses="MIT"
COPY --from=packages /opt/lookalike /opt/lookalike
COPY --from=bundle /bundle /bundle
COPY docker/health.py /opt/lookalike/health.py
# Additions and what was verified are kept here: mount a volume to keep them longer than the container.
RUN useradd --uid 10001 --no-create-home --home-dir /var/lib/lookalike lookalike \
    && install --directory --owner lookalike --group lookalike /var/lib/lookalike
ENV PATH=/opt/lookalike/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    LOOKALIKE_CACHE=/var/lib/lookalike/cache
USER 10001
WORKDIR /var/lib/lookalike
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s --retries=3 \
    CMD ["/opt/lookalike/bin/python", "/opt/lookalike/health.py"]
# What follows the image's name on `docker run` is added to this: --allow-host search.example.org
ENTRYPOINT ["lookalike", "serve", "--host", "0.0.0.0", "--port", "8000", "--index", "/bundle/index", \
            "--model", "/bundle/model", "--images", "/bundle/thumbnails", "--changes", "/var/lib/lookalike/changes"]
