"""From result files to tables, plots and markdown; nothing is measured or computed here."""

from specalign.reports.build import build_report, compare_runs
from specalign.reports.tables import result_table

__all__ = ["build_report", "compare_runs", "result_table"]
