# A server of one tail, on the CPU. From the repository's root:
#   docker build -f tools/docker/server.Dockerfile -t edgesdk-server .
#   docker run --read-only -v $PWD/b/server0:/model:ro -v $PWD/tls:/tls:ro -p 8000:8000 edgesdk-server \
#     serve /model --host 0.0.0.0 --tls-cert /tls/cert.pem --tls-key /tls/key.pem --token-file /tls/tokens
FROM python:3.12-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cloud cloud
COPY edge_sdk edge_sdk
COPY export export
RUN python -m venv /opt/edgesdk \
    && /opt/edgesdk/bin/pip install --no-cache-dir --constraint constraints.txt '.[grpc,trace]'

FROM python:3.12-slim-bookworm
COPY --from=build /opt/edgesdk /opt/edgesdk
ENV PATH=/opt/edgesdk/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
EXPOSE 8000
ENTRYPOINT ["edgesdk"]
CMD ["serve", "--help"]
