"""python -m specalign.benchmarks: the same as specalign-bench, from a checkout that is not installed."""

from specalign.benchmarks.cli import entry

if __name__ == "__main__":
    entry()
