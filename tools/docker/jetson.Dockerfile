# The device's side on a Jetson. BASE is NVIDIA's L4T JetPack image of the device's own JetPack release (it brings CUDA,
# TensorRT and its Python bindings, for that Python alone). From the repository's root, on the device:
#   docker build -f tools/docker/jetson.Dockerfile --build-arg BASE=… -t edgesdk-device .
#   docker run --runtime nvidia --group-add video -v $PWD/b/edge:/model:ro -v engines:/cache \
#     -v /etc/nv_tegra_release:/etc/nv_tegra_release:ro \
#     -v $PWD/photos:/photos:ro edgesdk-device run /model /photos --server https://tail.example.org:8000 --backend tensorrt --precision fp16
ARG BASE
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 10001 --group 10001 /cache
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cloud cloud
COPY edge_sdk edge_sdk
COPY export export
RUN python3 -m venv --system-site-packages /opt/edgesdk \
    && PATH=/usr/local/cuda/bin:$PATH /opt/edgesdk/bin/pip install --no-cache-dir --constraint constraints.txt '.[jetson]'
ENV PATH=/opt/edgesdk/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 EDGESDK_CACHE=/cache
VOLUME /cache
USER 10001:10001
ENTRYPOINT ["edgesdk"]
CMD ["doctor"]
