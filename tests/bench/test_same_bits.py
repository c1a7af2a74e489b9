#!/usr/bin/env python3
"""The loops of a step leave the same bits on every instruction set: as this machine picks them, as a smaller
machine would (valgrind shows programs one without AVX-512), and compiled for the baseline alone."""
import subprocess
import sys

PICKED, BASELINE = sys.argv[1:]


def digests(*words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=True)
    return dict(line.split(": ") for line in done.stdout.splitlines())


def main():
    baseline = digests(BASELINE)
    wrong = len(baseline) < 20
    for name, found in (("as picked", digests(PICKED)),
                        ("as picked by a smaller machine", digests("valgrind", "--tool=none", "-q", PICKED))):
        for kernel in sorted(baseline.keys() | found.keys()):
            if baseline.get(kernel) != found.get(kernel):
                wrong = True
                print(f"{kernel}, {name}: {found.get(kernel)}; for the baseline: {baseline.get(kernel)}")
    print(f"{len(baseline)} loops compared")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
