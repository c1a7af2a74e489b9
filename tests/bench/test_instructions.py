#!/usr/bin/env python3
"""Instructions of a fixed step, against the figure that is kept: whatever the noise of the machine, a
regression shows. With --write the figure is renewed: after a change that is meant to cost or to save,
look at what callgrind_annotate says, and commit it with the change."""
import os
import re
import subprocess
import sys

FIGURES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "instructions")
PROGRAM = os.environ["PARAMD_FIXED_STEP"]
TOLERANCE = 0.02
STEPS = (2, 12)
VARIANTS = ("plain", "clipped", "small", "many")
SKIPPED = 77


def machine():
    """The compiler and the instruction set the kernels are run with under valgrind."""
    compiler = os.environ["PARAMD_COMPILER"].split(".")[0]
    with open("/proc/cpuinfo", encoding="ascii") as cpuinfo:
        flags = next((line for line in cpuinfo if line.startswith("flags")), "").split()
    return f"{compiler} {'x86-64-v3' if {'avx2', 'bmi2', 'fma', 'f16c'} <= set(flags) else 'x86-64'}"


def run_instructions(variant, steps):
    done = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", PROGRAM, variant, str(steps)],
        capture_output=True, text=True, timeout=300, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or found is None:
        sys.exit(f"valgrind {PROGRAM} {variant} {steps}: exit code {done.returncode}: {done.stderr}")
    return int(found[1])


def step_instructions(variant):
    few, many = (run_instructions(variant, steps) for steps in STEPS)
    return (many - few) // (STEPS[1] - STEPS[0])


def read_figures():
    with open(FIGURES, encoding="ascii") as file:
        lines = file.read().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
    return [line for line in lines if line.startswith("#")], {name: int(figure) for name, figure in rows}


def write_figures(comments, figures):
    with open(FIGURES, "w", encoding="ascii") as file:
        file.write("\n".join(comments + [f"{name} {figure}" for name, figure in sorted(figures.items())]) + "\n")


def main():
    comments, figures = read_figures()
    counted = {f"{machine()} {variant}": step_instructions(variant) for variant in VARIANTS}
    if sys.argv[1:] == ["--write"]:
        write_figures(comments, figures | counted)
        print(f"{counted}: written to {FIGURES}")
        return 0
    if not counted.keys() <= figures.keys():
        print(f"{FIGURES} has no figures for {machine()}: here they are {counted}; --write keeps them")
        return SKIPPED
    wrong = False
    for name, now in counted.items():
        change = now / figures[name] - 1
        wrong = wrong or abs(change) > TOLERANCE
        print(f"{name}: {now} instructions a step, {change:+.2%} of the {figures[name]} kept; "
              f"allowed: {TOLERANCE:.0%} either way")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
