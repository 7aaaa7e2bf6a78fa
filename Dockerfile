# Renders on a CPU:
#
#     docker build --tag s3dnerf .
#
# With kernels for GPUs, compiled in an image that has nvcc:
#
#     docker build --tag s3dnerf:cuda --build-arg KERNELS_IMAGE=nvidia/cuda:13.0.2-devel-ubuntu24.04 --build-arg CUDA=1 .
#
# PyTorch's own package of Linux can use GPUs and is large; --build-arg TORCH_INDEX=URL takes it from an index of smaller
# builds. The image needs no rights, no network and no writable disk but /tmp:
#
#     docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --user "$(id -u):$(id -g)" \
#         --volume "$PWD:/work" s3dnerf render --image portrait.png --audio speech.wav --out talking.mp4

ARG KERNELS_IMAGE=debian:trixie-slim
FROM ${KERNELS_IMAGE} AS kernels
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 \
    && rm -rf /var/lib/apt/lists/*
COPY cuda_ext /source/cuda_ext
ARG CUDA=
RUN python3 /source/cuda_ext/build.py --out /native ${CUDA:+--cuda}

FROM python:3.12-slim-trixie
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/torch.txt /source/requirements/torch.txt
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement /source/requirements/torch.txt
COPY . /source
RUN pip install --no-cache-dir /source && rm -r /source
COPY --from=kernels /native /usr/local/lib/python3.12/site-packages/s3dnerf/native
RUN python -m compileall -q /usr/local/lib/python3.12/site-packages/s3dnerf && useradd --uid 10001 s3dnerf
USER 10001
# Nothing is downloaded, and what libraries cache goes to the one writable place.
ENV HF_HUB_OFFLINE=1 HOME=/tmp XDG_CACHE_HOME=/tmp/cache PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
ENTRYPOINT ["s3dnerf"]
CMD ["--help"]
