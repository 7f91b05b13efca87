"""From a suite and what is put over it to a config that can run; nothing heavy is imported for it."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

from specalign.benchmarks.config import BenchConfig, check, named_drafters
from specalign.config import load_config
from specalign.folders import is_empty, require_usable
from specalign.names import require_data_name, require_model_name
from specalign.templates import prompt_text


def suite_config(suite: str | Path | None) -> BenchConfig:
    """The suite file over the defaults; its run is called as it is, unless it says otherwise."""
    if suite is None:
        return replace(BenchConfig(), output=Path("reports/run"))
    path = Path(suite)
    found = replace(load_config(BenchConfig, path), suite=path)
    named = "output" in tomllib.loads(path.read_text(encoding="utf-8"))
    return found if named else replace(found, output=Path("reports") / path.stem)


def prepared(config: BenchConfig) -> BenchConfig:
    """The config as it runs. Raises UserError for what does not go together, and for inputs that are not there."""
    check(config)
    require_usable(config.output)
    if is_empty(config.output):  # a run that is there may have lost its inputs, and say more of that
        for name in (config.target.model, *named_drafters(config).values()):
            require_model_name(name)
        require_data_name(config.data.source)
    return replace(
        config, data=replace(config.data, prompt=prompt_text(config.data.prompt, config.data.source))
    )
