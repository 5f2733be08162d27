# vLLM's own image with our wheel in it: docker build -f deploy/cuda.Dockerfile -t vllm-smart:cuda .
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}
COPY pyproject.toml README.md LICENSE /src/
COPY vllm_smart /src/vllm_smart
COPY configs /src/configs
COPY deploy/wheel /src/deploy/wheel
# What the image has stays as it is.
RUN python3 -m pip list --format=freeze > /src/has.txt \
    && python3 -m pip install --no-cache-dir -c /src/has.txt /src \
    && rm -rf /src
# Cost tables, compiled models and downloads; without a volume each container measures anew.
ENV XDG_CACHE_HOME=/var/cache/vllm
VOLUME /var/cache/vllm
