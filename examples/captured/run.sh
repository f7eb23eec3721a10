#!/bin/sh
# Real activations: trains three small language models, captures their heads, looks at them, measures on them.
# One GPU; run it in the repository's root. What exists already is not made again: a run that was cut goes on.
#     examples/captured/run.sh [PYTHON]
set -eu
python=${1:-.venv/bin/python}

capture() { # checkpoint, name, tokens
    [ -e "captured/$2.safetensors" ] ||
        "$python" -m harness capture "$1" --out "captured/$2.safetensors" --tokens "$3" >"captured/$2.md"
}

mkdir -p captured
for model in large tied wide; do
    run=runs/captured-$model
    if [ -e "$run/plan.json" ]; then
        "$python" -m harness train --resume "$run"
    else
        "$python" -m harness train "examples/captured/$model.yaml" --out "$run"
    fi
    for beta in 0 0.1; do
        curve=$run/curves/ours-exact-b$beta
        capture "$curve" "$model-b$beta-late" 32768
        capture "$curve/checkpoints/kept-000300" "$model-b$beta-early" 32768
    done
done
capture runs/captured-wide/curves/ours-exact-b0 wide-b0-late-65536 65536

"$python" -m harness inspect captured/*-late.safetensors captured/*-early.safetensors >captured/sparsity.md
"$python" -m harness run suites/captured.yaml
