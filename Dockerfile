# AlignTok with its plugins, to train on NVIDIA GPUs: about 9 GB.
#   docker build -t aligntok .
#   docker run --gpus all --shm-size 8g -v /data:/data -v aligntok-hub:/hub \
#     -v aligntok-runs:/home/aligntok/project/work_dirs aligntok train configs/aligntok_dinov2_f16d32.py --dry-run
# torch's wheel brings its own CUDA 13 libraries; the base has the system's part of them, for a driver from 580 on.
FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Files of the hub, and of addresses and compiled code, outlive the container here, and runs in a volume over work_dirs. Data-loading processes exchange
# batches by /dev/shm, hence --shm-size.
ENV HF_HOME=/hub TORCH_HOME=/hub/torch TORCHINDUCTOR_CACHE_DIR=/hub/compiled PATH=/opt/aligntok/bin:$PATH PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 10001 aligntok \
    && mkdir -p /hub /opt/aligntok /home/aligntok/project/work_dirs \
    && chown -R aligntok /hub /opt/aligntok /home/aligntok/project
USER aligntok
WORKDIR /home/aligntok/project
RUN python3 -m venv /opt/aligntok

# The large part first: it stays the same while the code changes.
COPY --chown=aligntok constraints constraints
RUN pip install --constraint constraints/torch-2.14.txt torch torchvision xformers

COPY --chown=aligntok . .
RUN pip install --constraint constraints/torch-2.14.txt ".[demo,text,metrics,parquet,shards,remote,lora,diffusers]" \
    && pip install --no-deps plugins/aligntok-*

VOLUME /hub
ENTRYPOINT ["aligntok"]
CMD ["--help"]
