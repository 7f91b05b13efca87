"""What a training run and a benchmark leave, as objects: folders, tables, pictures, shown by notebooks as they are."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from specalign import results
from specalign.analysis.partial import result_so_far
from specalign.analysis.speeds import read_speeds
from specalign.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import PreTrainedModel

KINDS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Plot:
    """A picture."""

    name: str
    caption: str
    figure: Figure = field(repr=False)

    def save(self, path: str | Path) -> Path:
        """Write it as the file's ending says: .png, .svg or .pdf."""
        from specalign.curves import save

        kind = Path(path).suffix.removeprefix(".")
        if kind not in KINDS:
            raise UserError(f"a picture is saved as one of {', '.join(KINDS)}, not as {str(path)!r}")
        return save(self.figure, Path(path))

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.figure.savefig(drawn, format="png", dpi=110)
        return drawn.getvalue()


@dataclass(frozen=True)
class TrainedStudent:
    """A finished training run. Its folder is a Hugging Face checkpoint, and it can stand for that folder's path."""

    path: Path
    messages: tuple[str, ...] = field(default=(), repr=False)
    """What would have been printed: what was left out or cut, validations, warnings."""

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def log(self) -> pd.DataFrame:
        """train.jsonl: a row a logged step (``kind`` = train) or validation, a column a field."""
        from specalign.training.folder import read_log

        return pd.DataFrame(read_log(self.path))

    @property
    def facts(self) -> dict[str, Any]:
        """provenance.json: what the run was made of, what it took and came to."""
        from specalign.training.folder import read_provenance

        return read_provenance(self.path)

    @property
    def curves(self) -> Plot:
        """Loss and validation metrics over trained tokens and over seconds."""
        from specalign.curves import curves_of, draw, labels

        return Plot("curves", f"Learning curves of {self.path}.", draw(curves_of(labels([self.path]))))

    def load(self, device: str = "auto", dtype: str = "auto") -> PreTrainedModel:
        """The student, ready to draft with or to go on with."""
        from specalign.models.load import load_model, resolve_device, resolve_dtype

        place = resolve_device(device)
        return load_model(str(self.path), dtype=resolve_dtype(dtype, place), device=place)

    def _repr_html_(self) -> str:
        course = self.facts.get("validation", {})
        cells = {
            "student": str(self.path),
            "method": self.facts.get("method"),
            "steps": self.facts.get("steps"),
        }
        cells |= {"trained tokens": self.facts.get("trained_tokens"), "kept step": self.facts.get("kept_step")}
        if course:
            name = course["metric"]
            cells |= {f"{name}, {when}": f"{course[when]:.3f}" for when in ("start", "best", "end")}
        return pd.DataFrame([cells]).to_html(index=False)


@dataclass(frozen=True)
class BenchmarkResult:
    """A finished benchmark."""

    path: Path
    messages: tuple[str, ...] = field(default=(), repr=False)
    """What would have been printed."""

    @property
    def result(self) -> results.BenchmarkResult:
        """result.json."""
        return result_so_far(self.path)

    @property
    def rows(self) -> pd.DataFrame:
        """The figures: a row a method, temperature and draft length. An interval has columns such as ``speedup.value``,
        ``speedup.low`` and ``speedup.high``; what no row has is left out.
        """
        return pd.json_normalize([asdict(row) for row in self.result.rows]).dropna(axis="columns", how="all")

    def records(self) -> pd.DataFrame:
        """records.jsonl: a row a generation; columns of its steps are lists."""
        from specalign.reports.export import records_frame

        return records_frame(self.path)

    def report(self) -> Path:
        """Write report.md, report.html and the pictures into the folder; returns report.md."""
        from specalign.reports import build_report

        return build_report(self.path)

    @property
    def table(self) -> pd.DataFrame:
        """The report's comparison, as text: values with their 95 % intervals."""
        from specalign.reports.rows import at, temperatures_of
        from specalign.reports.tables import table_cells

        rows = self.result.rows
        parts = []
        for temperature in temperatures_of(rows):
            header, lines = table_cells(at(rows, temperature))
            parts.append(pd.DataFrame(lines, columns=header).assign(temperature=f"{temperature:g}"))
        found = pd.concat(parts).fillna("") if parts else pd.DataFrame({"temperature": []})
        return found.set_index("temperature")

    @property
    def plots(self) -> dict[str, Plot]:
        """The report's pictures by name: speedup, break_even, gamma, iso, time and others, as far as they have data."""
        from specalign.reports.gallery import figures

        drawn = figures(self.result.rows, read_speeds(self.path))
        return {name: Plot(name, caption, figure) for name, figure, caption in drawn}

    @property
    def verdict(self) -> str:
        """What the report opens with: which drafter to use, or none, and what to beware of."""
        from specalign.reports.content import Paragraph
        from specalign.reports.sections import document

        opening = document(self.result, read_speeds(self.path), ()).opening
        return "\n".join(
            f"{block.lead} {block.text}".strip() for block in opening if isinstance(block, Paragraph)
        )

    def _repr_html_(self) -> str:
        return self.table.to_html()
