# Two images from one file: `--target cpu` for the API, the io worker and CPU workers, `--target gpu` for
# workers on an NVIDIA GPU (the driver is the host's; CUDA and cuDNN come as pinned wheels).
ARG PYTHON=3.12-slim-bookworm

FROM python:${PYTHON} AS wheel
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /source
COPY locks/dev.txt locks/
# The build backend and what it needs, by the hashes of the lock file, and nothing else from it.
RUN awk '/^[a-z]/ { wanted = /^(hatchling|packaging|pathspec|pluggy|tomlkit|trove-classifiers)==/ } wanted' \
        locks/dev.txt > locks/build.txt \
    && pip install --require-hashes -r locks/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY gristmill gristmill
COPY jobs jobs
COPY migrations migrations
COPY worker worker
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels .

FROM python:${PYTHON} AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 GRISTMILL_DATA_DIR=/data
RUN useradd --uid 10001 --create-home gristmill && install -d -o gristmill -g gristmill /data
VOLUME /data
EXPOSE 8000

FROM base AS cpu
COPY locks/cpu.txt /tmp/
RUN pip install --require-hashes -r /tmp/cpu.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl
USER gristmill
ENTRYPOINT ["gristmill"]

FROM base AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY locks/gpu.txt /tmp/
RUN pip install --require-hashes -r /tmp/gpu.txt
COPY --from=wheel /wheels /wheels
RUN pip install --no-deps /wheels/*.whl
USER gristmill
ENTRYPOINT ["gristmill"]
