"""Mend vLLM's sampled speculative decoding on CPUs in the environment that runs this (make_vllm_env.sh calls it).

vLLM 0.32 spreads each request's temperature, top_k and top_p over its drafted tokens with a kernel whose CPU stand-in
writes into a copy that it drops: the target's logits are divided by uninitialised memory, and what is sampled follows
no model (vllm-project/vllm#55005). Greedy requests never come there. The same in torch goes behind the function that
it replaces, once; an environment without that function is left alone.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

FUNCTION = "def _expand_kernel_impl("
MARK = "# Mended by specalign: "
MENDED = f"""

{MARK}the version above fills a copy of ``output`` (vllm-project/vllm#55005).
def _expand_kernel_impl(output, input_val, cu_num_tokens, replace_from, replace_to, MAX_NUM_TOKENS=None):
    values = torch.where(input_val == replace_from, torch.full_like(input_val, replace_to), input_val)
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    output.copy_(values.repeat_interleave(counts))
"""


def main() -> None:
    """Append it where it is needed, and say so."""
    spec = find_spec("vllm")
    path = Path(spec.origin or "").parent / "utils" / "cpu_triton_utils.py" if spec else Path()
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if FUNCTION in text and MARK not in text:
        path.write_text(text + MENDED, encoding="utf-8")
        print("mended:", path.name)


if __name__ == "__main__":
    main()
