#!/bin/sh
# Environments of the peers of benchmarks/imputation.py: FOLDER/magic and FOLDER/scvi. MAGIC needs an older numpy than scvi-tools.
#
#   sh benchmarks/peers/install_denoising.sh FOLDER
#   python benchmarks/imputation.py --magic-python FOLDER/magic/bin/python --scvi-python FOLDER/scvi/bin/python
# PyPI's torch brings CUDA; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu TORCH=2.13.0+cpu does not.
set -eu
folder=${1:?name a folder for the environments}
python=${PYTHON:-python3}
"$python" -m venv "$folder/magic"
"$folder/magic/bin/pip" install 'magic-impute==3.0.0' 'numpy<2'
"$python" -m venv "$folder/scvi"
"$folder/scvi/bin/pip" install 'scvi-tools==1.4.2' "torch==${TORCH:-2.13.0}"
