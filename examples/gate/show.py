"""Shows that a gate fails when it should and passes when it should: `python examples/gate/show.py OUT`, from the root.

Copies this tree, plants one change in the copy's `ours`, and runs `gate --pair base=. head=COPY`:

    slowdown   3 % more work, products, in the forward                       exit 1
    memory     1 MiB more that lives from the forward to the backward        exit 1
    gradients  2 % too large                                                 exit 3
    none       the same code, ten gates in a row                             exit 0 each

About 10 minutes on an H200. On a CPU only `gradients` and `none` mean anything: memory and times are of a GPU. Tables
and records go to OUT, with summary.md; the exit code is 1 if any gate ended otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUITE = Path(__file__).with_name("show.yaml")
PACKAGES = ("implementations", "kernels")  # what is measured; what measures is the running harness

CALL = "target, linear_bias)\n        return value\n"
PLANTED_CALL = "target, linear_bias)\n        return _planted(self, value, input, linear_weight, target)\n"
PLANTS = {
    "none": "    return value\n",
    "gradients": "    return 1.02 * value - 0.02 * value.detach()\n",
    "memory": """\
    import torch

    more = torch.empty(1 << 20, dtype=torch.uint8, device=value.device)
    if value.requires_grad:
        value.register_hook(lambda grad: grad if more.numel() else None)  # keeps it for as long as the loss
    return value
""",
    "slowdown": """\
    from harness.selftest.planted import Busy

    if not value.is_cuda or not value.requires_grad:
        return value
    if not hasattr(self, "_busy"):
        module = next(iter(self._modules.values()))
        self._busy = Busy(0.03, module, given)
    self._busy()
    return value
""",
}
EXPECTED = {"slowdown": 1, "memory": 1, "gradients": 3, "none": 0}


def planted_tree(plant: str, into: Path) -> Path:
    """A copy of what is measured, with `plant` in its `ours`. Raises ValueError if ours.py has no place for it."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, into / package, ignore=shutil.ignore_patterns("__pycache__"))
    file = into / "implementations" / "ours.py"
    source = file.read_text()
    if source.count(CALL) != 1:
        raise ValueError(f"{file} no longer returns the loss as this script expects it to")
    planted = f"\n\ndef _planted(self, value, *given):\n{PLANTS[plant]}"
    file.write_text(source.replace(CALL, PLANTED_CALL) + planted)
    (into / "REVISION").write_text(f"{plant}\n")
    return into


def gate(head: Path, out: Path) -> tuple[int, float]:
    """The exit code of one gate, and the seconds that it took."""
    begin = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "harness",
        "gate",
        "--pair",
        "base=.",
        f"head={head}",
        str(SUITE.relative_to(ROOT)),
        "--out",
        str(out),
    ]
    done = subprocess.run(command, cwd=ROOT, check=False)
    return done.returncode, time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--plants", nargs="+", choices=PLANTS, default=list(EXPECTED))
    parser.add_argument("--times", type=int, default=10, help="gates of the same code in a row")
    given = parser.parse_args()
    out: Path = given.out.resolve()
    lines, wrong = ["| planted | expected exit | exit | s |", "|:--|--:|--:|--:|"], 0
    with tempfile.TemporaryDirectory() as scratch:
        for plant in given.plants:
            tree = planted_tree(plant, Path(scratch, plant))
            for number in range(given.times if plant == "none" else 1):
                code, seconds = gate(tree, out / (f"{plant}-{number + 1}" if plant == "none" else plant))
                wrong += code != EXPECTED[plant]
                lines.append(f"| {plant} | {EXPECTED[plant]} | {code} | {seconds:.0f} |")
                print(lines[-1], flush=True)
                out.mkdir(parents=True, exist_ok=True)
                (out / "summary.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
