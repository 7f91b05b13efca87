"""specalign: train drafters for speculative decoding, and measure what they are worth.

Notation, everywhere (Leviathan et al. 2023, arXiv:2211.17192): p is the teacher or target, q the student
or drafter, gamma the draft length, alpha the acceptance rate, tau the tokens per target call, and
c = T_draft / T_target.

This module imports nothing heavy, so that ``--help`` stays instant.
"""

__version__ = "0.1.0"
