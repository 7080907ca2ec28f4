# One image for every node of the cluster and for the operator: docker build -t meedge-ray:0.1.0 .
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY . /src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /src

FROM python:3.11-slim
# KubeRay asks Ray how it is with wget.
RUN apt-get update && apt-get install -y --no-install-recommends wget && rm -rf /var/lib/apt/lists/*
COPY --from=build /wheels /wheels
COPY constraints.txt /
RUN pip install --no-cache-dir --constraint /constraints.txt "$(ls /wheels/*.whl)[train,operator]"
# /var/lib/meedge is where the manifests mount their volume.
RUN useradd --uid 1000 --create-home meedge && install --directory --owner=meedge /var/lib/meedge
USER 1000
WORKDIR /home/meedge
