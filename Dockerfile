# The demo in a container, see docs/deploy.md:   docker build -t fakeface .   docker run --rm -p 8501:8501 fakeface
FROM python:3.12-slim

# The address that PyTorch's installation page gives for CPU builds. Empty: the default builds, which bring gigabytes of CUDA.
ARG TORCH_INDEX=""

# Requirements are read from settings.ini, in a layer of their own that changes only with it. The code is added later, where pip says it is.
WORKDIR /app
COPY settings.ini setup.py ./
RUN mkdir fakeface && touch fakeface/__init__.py README.md \
 && pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -e . \
 && useradd --uid 1000 --no-create-home --home-dir /tmp demo

COPY LICENSE app.py ./
COPY .streamlit/config.toml .streamlit/
COPY fakeface fakeface/

# Nothing in /app can be written by this user, and nothing needs to be; libraries that insist on a cache find /tmp
ENV HOME=/tmp PYTHONUNBUFFERED=1 STREAMLIT_SERVER_PORT=8501
USER 1000
EXPOSE 8501
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
  CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['STREAMLIT_SERVER_PORT'] + '/_stcore/health', timeout=4)"]
# Told its address, Streamlit does not ask the internet for it when it starts
CMD ["streamlit", "run", "app.py", "--server.address=0.0.0.0", "--server.headless=true", "--browser.serverAddress=localhost"]
