# A server of one tail on an NVIDIA GPU: TensorRT, or ONNX Runtime's GPU providers. From the repository's root:
#   docker build -f tools/docker/server-gpu.Dockerfile -t edgesdk-server-gpu .
#   docker run --gpus all -v $PWD/b/server0:/model:ro -v engines:/cache -v $PWD/tls:/tls:ro -p 8000:8000 \
#     edgesdk-server-gpu serve /model --backend tensorrt --precision fp16 --host 0.0.0.0 \
#     --tls-cert /tls/cert.pem --tls-key /tls/key.pem --token-file /tls/tokens
# The first start builds the engines, for this GPU; the volume keeps them.
FROM nvidia/cuda:12.9.1-cudnn-devel-ubuntu24.04 AS build
WORKDIR /src
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cloud cloud
COPY edge_sdk edge_sdk
COPY export export
# pycuda is compiled here, against this CUDA; ONNX Runtime's CPU package makes way for the one with GPU providers. All
# are for CUDA 12, as the image is: the package that is called tensorrt alone would bring the newest CUDA's. ONNX Runtime
# 1.24 is built for TensorRT 10.14, and the first that says which layers its providers leave to the CPU.
RUN python3 -m venv /opt/edgesdk \
    && /opt/edgesdk/bin/pip install --no-cache-dir --constraint constraints.txt '.[grpc,trace]' pycuda \
        'tensorrt-cu12==10.14.*' \
    && /opt/edgesdk/bin/pip uninstall --yes onnxruntime \
    && /opt/edgesdk/bin/pip install --no-cache-dir 'onnxruntime-gpu==1.24.*'

FROM nvidia/cuda:12.9.1-cudnn-runtime-ubuntu24.04
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && install --directory --owner 10001 --group 10001 /cache
COPY --from=build /opt/edgesdk /opt/edgesdk
ENV PATH=/opt/edgesdk/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 EDGESDK_CACHE=/cache
# Where ONNX Runtime's TensorRT provider finds its library.
ENV LD_LIBRARY_PATH=/opt/edgesdk/lib/python3.12/site-packages/tensorrt_libs:$LD_LIBRARY_PATH
VOLUME /cache
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["edgesdk"]
CMD ["serve", "--help"]
