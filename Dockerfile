# Everything `make repro` needs; it measures inside, and its records and report are mounted from outside:
#   docker build -t kv-cache-lab --build-arg UID="$(id -u)" .
#   docker run --rm -v "$PWD/results:/lab/results" -v "$PWD/reports:/lab/reports" kv-cache-lab
#   docker run --rm kv-cache-lab make test
# With a GPU, build with --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 and run with --gpus all.
# Bookworm, because its Python is the 3.11 that the constraints were frozen with.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# A version of a distribution's package disappears with its next security update, so pinning here would break the build.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# What is mounted belongs to whoever mounts it: the user inside has the same number, which a base may have given away.
ARG UID=1000
RUN useradd --no-log-init --create-home --non-unique --uid "${UID}" lab \
    && install --directory --owner=lab /lab
USER ${UID}
ENV HOME=/home/lab
WORKDIR /lab

# Only a change of these three installs again. The packages are empty here, and found once the sources are in place.
ENV PIP_NO_CACHE_DIR=1
COPY --chown=lab pyproject.toml constraints.txt Makefile ./
RUN mkdir pipeline strategies \
    && touch README.md pipeline/__init__.py strategies/__init__.py \
    && make .venv/.installed

# DVC asks for a repository but not for its history: an empty one spares the image every commit and what .git/config
# may hold. The stamp is touched because a fresh clone is newer than a cached layer, and make would install again.
COPY --chown=lab . .
RUN git init --quiet \
    && touch .venv/.installed

VOLUME ["/lab/results", "/lab/reports"]
CMD ["make", "repro"]
