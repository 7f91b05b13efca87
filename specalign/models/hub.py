"""Names of models on the hub: one look-up each, and its failure remembered."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from specalign.errors import UserError

PATIENCE_S = 10.0
"""Until the hub counts as unreachable."""
NOT_THERE = (401, 403, 404)
"""What the hub answers for a name that does not exist, or that one may not see."""


def cached_folder(name: str) -> Path | None:
    """The local copy of a model of the hub; None where there is none."""
    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None


def require_on_hub(name: str) -> None:
    """Raise UserError with the remedy unless ``name`` is on the hub, or in the local cache where that is out of reach.

    transformers would look for each of a dozen files, five times each.
    """
    problem = _problem(name)
    if problem:
        raise UserError(f"cannot load model {name!r}: {problem}")


@cache
def _problem(name: str) -> str:
    """Asked once a process. An unreachable hub is not asked again: what is in the cache is used as in offline mode."""
    if not constants.is_offline_mode():
        try:
            get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PATIENCE_S)
        except GatedRepoError:
            return (
                ""
                if cached_folder(name)
                else (
                    f"it is gated; accept its licence at https://huggingface.co/{name} and run: hf auth login"
                )
            )
        except Exception as error:  # of the network, in whatever class the hub's client has today
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
            if status in NOT_THERE:
                return (
                    ""
                    if cached_folder(name)
                    else (
                        "it is no local folder, and the hub has no model of that name with a config.json "
                        "(or it is private: run: hf auth login)"
                    )
                )
            constants.HF_HUB_OFFLINE = True
        else:
            return ""
    if cached_folder(name):
        return ""
    return (
        "the hub cannot be reached, or its offline mode is on; it is no local folder; download it on a machine with a "
        f"network: hf download {name}"
    )
