# docker build -t scamac-scale .                                                               PyPI's torch, which brings CUDA: for a GPU, and the CPU
# docker build --build-arg EXTRAS=gpu,s3 ...                                                   with faiss for the GPU
# docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu ...                for the CPU alone: small
# docker run --rm --read-only --tmpfs /tmp -v "$PWD:/data" scamac-scale train --store atlas.store.zarr --run run
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=cpu,s3
ARG TORCH_INDEX=
WORKDIR /src
# pip and what builds the package live in an environment of their own, which stays behind.
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/venv
ENV PATH=/opt/tools/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
# Settings of pip, with whatever secret they hold, come by --secret id=pip.conf,src=FILE, and are in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip install --no-cache-dir -c constraints.txt hatchling editables
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
    -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
COPY scamac_scale ./scamac_scale
RUN pip wheel --no-cache-dir --no-deps --no-index --no-build-isolation --wheel-dir /src/wheel .
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf pip --python /opt/venv/bin/python install --no-cache-dir \
    -c constraints.txt "$(echo /src/wheel/*.whl)[${EXTRAS}]"
# Nobody runs the tests of libraries here, nor compiles against torch.
RUN find /opt/venv/lib -depth -path '*/site-packages/*' \( -type d \( -name tests -o -name test -o -path '*/torch/include' -o -path '*/torch/share' \) \
    -o -path '*/torch/bin/*' ! -name torch_shm_manager \) -exec rm -rf {} +
# Kernels are compiled here and for any processor of the kind, so that the first command of a container need not. numba knows a source
# again by its time, of which a layer keeps whole seconds only.
ENV NUMBA_CPU_NAME=generic \
    KERNELS=/opt/venv/kernels/scamac-scale-0
RUN find /opt/venv/lib -path '*/scamac_scale/*.py' -exec touch -d "@$(date +%s)" {} + \
    && /opt/venv/bin/python -m compileall -q -f /opt/venv/lib/python3*/site-packages/scamac_scale \
    && export PATH=/opt/venv/bin:$PATH NUMBA_CACHE_DIR=$KERNELS && scamac-scale demo --cells 1000 --out /src/demo \
    && scamac-scale markers /src/demo/pbmc.result.zarr --input /src/demo/pbmc.h5ad \
    && chmod -R a+rX,go-w /opt/venv/kernels

# A CUDA image works here too, if it has the same Python at the same place; the host's driver is all that torch needs.
FROM ${PYTHON_IMAGE} AS run
ARG VERSION=0.1.0
ARG SOURCE=https://example.org/scamac-scale
LABEL org.opencontainers.image.title="scamac-scale" \
    org.opencontainers.image.description="Clusters single cells of atlases of any size, out of core" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.source="${SOURCE}" \
    org.opencontainers.image.licenses="BSD-3-Clause"
RUN useradd --create-home --uid 1000 scamac
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NUMBA_CPU_NAME=generic \
    SCAMAC_KERNELS_DIR=/opt/venv/kernels/scamac-scale-0 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
ENTRYPOINT ["scamac-scale"]
CMD ["--help"]
