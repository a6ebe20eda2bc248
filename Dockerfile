# docker build -t scamac-scale .                        on the CPU, and on a GPU (PyPI's torch for Linux brings CUDA)
# docker build --build-arg EXTRAS=gpu,s3 ...            with faiss for the GPU and object storage
# docker run --rm --gpus all -v "$PWD:/data" scamac-scale train --store atlas.store.zarr --run run
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
ARG EXTRAS=cpu
WORKDIR /src
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml constraints.txt README.md LICENSE ./
RUN pip install --no-cache-dir -c constraints.txt hatchling editables
COPY scamac_scale ./scamac_scale
RUN pip install --no-cache-dir -c constraints.txt --no-build-isolation ".[${EXTRAS}]"

# A CUDA image works here too, if it has the same Python at the same place; the host's driver is all that torch needs.
FROM ${PYTHON_IMAGE} AS run
RUN useradd --create-home --uid 1000 scamac
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000
WORKDIR /data
ENTRYPOINT ["scamac-scale"]
CMD ["--help"]
