#!/bin/sh
# Does label smoothing calibrate? Trains two hidden sizes, without and with a softcap, with six smoothings each, and judges
# the 24 models; then 8 more that read little text many times over, and are over-confident without smoothing. One GPU; run
# it in the repository's root. A run that was cut goes on.
#     examples/calibration/run.sh [PYTHON]
set -eu
python=${1:-.venv/bin/python}

for model in d256 d256-cap30 d768 d768-cap30 repeated-d256 repeated-d768; do
    run=runs/calibration-$model
    if [ -e "$run/plan.json" ]; then
        "$python" -m harness train --resume "$run"
    else
        "$python" -m harness train "examples/calibration/$model.yaml" --out "$run"
    fi
done
"$python" -m harness calibrate runs/calibration-d256 runs/calibration-d256-cap30 \
    runs/calibration-d768 runs/calibration-d768-cap30 --out runs/calibration
"$python" -m harness calibrate runs/calibration-repeated-d256 runs/calibration-repeated-d768 --out runs/calibration-repeated
