"""TensorBoard and other experiment trackers, by accelerate's own classes: what train.jsonl gets, they get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from specalign.config import flat
from specalign.folders import list_written

PROJECT = "specalign"


class Trackers:
    """The trackers of one run; rank 0 has them. What they write into its folder is listed as the run's in the end."""

    def __init__(self, names: Sequence[str], run: Path, config: Mapping[str, Any]) -> None:
        self.folders = [run / name for name in names]
        self.before = self._files()
        self.trackers = [_start(name, run) for name in names]
        for tracker in self.trackers:
            tracker.store_init_configuration(_scalars(config))

    def log(self, fields: Mapping[str, Any]) -> None:
        """The numbers of one line of train.jsonl, under its kind, at its step."""
        kind, step = fields["kind"], fields["step"]
        values = {f"{kind}/{key}": value for key, value in fields.items() if _is_number(key, value)}
        for tracker in self.trackers:
            tracker.log(values, step=step)

    def finish(self) -> None:
        """Write what is buffered."""
        for tracker in self.trackers:
            tracker.finish()
        list_written(self._files() - self.before)

    def _files(self) -> set[Path]:
        return {path for folder in self.folders for path in folder.rglob("*") if path.is_file()}


def _start(name: str, run: Path) -> Any:
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    tracker = kind(run.name, run / name) if kind.requires_logging_directory else kind(PROJECT)
    if hasattr(tracker, "start"):  # newer accelerate starts a tracker apart from making it
        tracker.start()
    return tracker


def _is_number(key: str, value: object) -> bool:
    return key != "step" and isinstance(value, int | float) and not isinstance(value, bool)


def _scalars(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names; lists as text, since hyper-parameter tables take scalars alone."""
    return {
        key: value if isinstance(value, str | int | float | bool) else str(value)
        for key, value in flat(config).items()
    }
