# One image that runs every step of the pipeline, as an ordinary user, on a read-only root file system with a writable /tmp.
#
#   CPU     docker build -t cotrain .
#   CUDA    docker build -t cotrain --build-arg TORCH_INDEX= .        pip's own index has the CUDA build

ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}

# Where the wanted build of torch is found, besides pip's own index; PyTorch keeps one index per CUDA version and one for CPUs.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

ENV PATH=/opt/cotrain/bin:$PATH DS_BUILD_OPS=0 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src

# torch is the largest layer and changes least
COPY requirements.lock ./
RUN python3 -m venv /opt/cotrain \
 && pip install -c requirements.lock pip setuptools wheel \
 && pip install -c requirements.lock ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch

# then everything else that pyproject.toml asks for; there is no code yet, so a change of code doesn't come here
COPY pyproject.toml LICENSE ./
RUN pip install -c requirements.lock --no-build-isolation .

COPY trainer ./trainer
COPY components ./components
COPY pipelines ./pipelines
RUN pip install --no-deps --no-build-isolation --force-reinstall . \
 && echo 'cotrain:x:65532:65532:cotrain:/tmp:/bin/sh' >> /etc/passwd \
 && echo 'cotrain:x:65532:' >> /etc/group
COPY examples /opt/cotrain/examples

# Whatever is written goes below /tmp, and nothing is asked of a hub behind one's back.
ENV HOME=/tmp USER=cotrain LOGNAME=cotrain TMPDIR=/tmp XDG_CACHE_HOME=/tmp/.cache \
    MPLCONFIGDIR=/tmp/.cache/matplotlib \
    TORCH_EXTENSIONS_DIR=/tmp/.cache/torch_extensions TORCHINDUCTOR_CACHE_DIR=/tmp/.cache/inductor TRITON_CACHE_DIR=/tmp/.cache/triton \
    HF_HOME=/tmp/.cache/huggingface HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

ARG REVISION=unknown
LABEL org.opencontainers.image.title="cotrain" \
      org.opencontainers.image.description="Joint training on Kubernetes with Kubeflow and DeepSpeed, proved per task" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"

WORKDIR /tmp
USER 65532:65532
CMD ["cotrain", "--help"]
