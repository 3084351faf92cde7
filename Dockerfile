# Driver and executors of a Kubernetes cluster: docs/how-to/cluster.md. Not built and not run by us.
#   make wheel && docker build --tag REGISTRY/dfn-etl:0.1.0 .
# Spark's own image has its distribution and the entry point that Kubernetes calls, but an older Python.
ARG SPARK=apache/spark:4.2.0-scala2.13-java17-ubuntu
FROM ${SPARK} AS spark

FROM python:3.11-slim-bookworm
# Java for Spark; tini reaps what a killed executor leaves; procps for Spark's scripts.
RUN apt-get update && apt-get install --yes --no-install-recommends openjdk-17-jre-headless procps tini \
    && rm -rf /var/lib/apt/lists/*
COPY --from=spark /opt/spark /opt/spark
COPY --from=spark /opt/entrypoint.sh /opt/entrypoint.sh
ENV SPARK_HOME=/opt/spark PYSPARK_PYTHON=/usr/local/bin/python3 PYSPARK_DRIVER_PYTHON=/usr/local/bin/python3

# The wheel brings conf/ along; `train` brings a torch with CUDA (7 GB), `s3` the object store.
COPY dist/*.whl /tmp/
RUN for wheel in /tmp/*.whl; do pip install --no-cache-dir "$wheel[spark,train,s3,web]"; done && rm /tmp/*.whl
ENV HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

# Delta's jars, where Spark loads all others from: then no machine asks for them at its start.
RUN DFN_CACHE=/tmp/dfn python3 -m etl.jvm && cp /tmp/dfn/jars/*/*.jar /opt/spark/jars/ && rm -rf /tmp/dfn

COPY conf/spark /opt/spark/conf/dfn
WORKDIR /opt/spark/work-dir
USER 185
ENTRYPOINT ["/opt/entrypoint.sh"]
