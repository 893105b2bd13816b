# The image that jobs on AWS Batch run in. From the repository's root: docker build -t lungmill .   (docs/aws.md)
FROM python:3.12-slim

WORKDIR /lungmill
COPY requirements.txt requirements-aws.txt ./
RUN pip install --no-cache-dir -r requirements.txt -r requirements-aws.txt

# Jobs bring the workflow's sources with them, so an update of lungmill needs no new image unless these files change.
# Snakemake has every job install its storage plugins anew. Here they are, as pinned: this pip does nothing.
RUN printf '#!/bin/sh\necho "in the image already: pip $*"\n' > "$(command -v pip)"
