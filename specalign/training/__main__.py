"""python -m specalign.training: the same as specalign-train, for accelerate launch."""

from specalign.training.cli import entry

if __name__ == "__main__":
    entry()
