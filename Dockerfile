# The lab with its notebooks, on CPU:
#   docker build -t position-encoding-lab . && docker run --rm -p 8888:8888 position-encoding-lab
FROM python:3.12-slim
# make sets up and starts; torch.compile needs a C++ compiler; records name the commit they were made from.
RUN apt-get update && apt-get install -y --no-install-recommends make g++ git && rm -rf /var/lib/apt/lists/*
WORKDIR /lab
COPY . .
RUN make .venv/.ready
EXPOSE 8888
CMD ["make", "lab", "LAB=--ip=0.0.0.0 --no-browser --allow-root"]
