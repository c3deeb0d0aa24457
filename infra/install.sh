#!/bin/sh
# Everything the image has of Python: infra/Dockerfile runs this twice, so that a change of code leaves the large layer
# of dependencies as it is; tests/infra/test_image.py runs it in a fresh folder.
#
#   install.sh dependencies VENV   what pyproject.toml asks for, at the versions of constraints.txt; needs no code
#   install.sh code VENV           the project itself, from the current folder
#
# TORCH_INDEX: another package index, for a build of torch without CUDA.
set -eu

step=$1
venv=$2
case $step in
  dependencies)
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --no-cache-dir -c constraints.txt \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[cluster,s3,gs,az,export]'
    "$venv/bin/pip" uninstall --quiet --yes diffseg
    ;;
  code)
    "$venv/bin/pip" install --quiet --no-cache-dir --no-deps .
    "$venv/bin/pip" check
    "$venv/bin/diffseg" --help >/dev/null
    ;;
  *)
    echo "install.sh: no step '$step'; there are dependencies and code" >&2
    exit 2
    ;;
esac
