# Three images: `docker build --target operator|gateway|worker .` Operator and gateway have no torch.
# Operator and gateway have the versions of constraints.txt.
ARG PYTHON=3.12
ARG CUDA=13.0.1

FROM python:${PYTHON}-slim-bookworm AS wheel
WORKDIR /src
RUN pip install --no-cache-dir build
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
COPY serving serving
COPY bootstrap bootstrap
COPY kernels kernels
RUN python -m build --wheel --outdir /wheels

# What operator, gateway and bootstrap server need: the package without extras.
FROM python:${PYTHON}-slim-bookworm AS base-environment
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels
RUN python -m venv /opt/baton && /opt/baton/bin/pip install --no-cache-dir -c /constraints.txt /wheels/*.whl

FROM python:${PYTHON}-slim-bookworm AS slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=base-environment /opt/baton /opt/baton
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["baton"]

FROM slim AS operator
LABEL org.opencontainers.image.description="Baton's operator"

FROM slim AS gateway
LABEL org.opencontainers.image.description="Baton's gateway and bootstrap server"

# FlashInfer compiles kernels at first use, so the worker brings a compiler and CUDA's headers.
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04 AS worker
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Baton" \
      org.opencontainers.image.description="Baton's worker" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update \
    && apt-get install --yes --no-install-recommends \
       g++ ibverbs-providers libcurl4t64 libibverbs1 libnuma1 ninja-build python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /wheels /wheels
RUN python3 -m venv /opt/baton \
    && /opt/baton/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[cuda]" \
    && rm -rf /wheels
ENV PATH=/opt/baton/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
USER 65532:65532
WORKDIR /tmp
ENTRYPOINT ["baton"]
