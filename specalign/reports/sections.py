"""The sections of a report: functions from the result to blocks of text, tables and pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from specalign.analysis.decision import standing
from specalign.analysis.families import Family, between_rows
from specalign.analysis.pairs import HEADER, cells, pairs_at, told
from specalign.analysis.parts import NO_PARTS, Parts
from specalign.analysis.renew import OUTDATED
from specalign.analysis.speeds import Speeds, group_of
from specalign.metrics import METRICS_VERSION
from specalign.reports.content import Block, Code, Document, Paragraph, Picture, Section, Table
from specalign.reports.parts import parts
from specalign.reports.recommendation import processor, recommendation, setting
from specalign.reports.rows import at, temperatures_of
from specalign.reports.served import engine, load
from specalign.reports.tables import detail_cells, interval, number, table_cells
from specalign.results import N_SEEN, SUFFIX, BenchmarkResult, SummaryRow, seen_note

SYMBOLS = """\
Every row decodes the same prompts; speed-up is the plain target's seconds per token over the row's, both at the plain
target's output lengths (at temperature 0 that is whole requests, prefill included), paired by prompt, with a 95 %
interval over prompts of this row alone; "jointly" gives bounds that hold for all rows of the run at once, by swaps of
both sides within whole prompts: they decide. "whole" is the same over whole requests at their own lengths, "decode
speed-up" over decode seconds alone, and "predicted" is what the cost model gives for it from the measured step times
and acceptance. γ: draft length. α expected: mean over examined draft positions of Σ min(p, q). α counted: accepted /
examined drafts. Break-even α: the acceptance rate at which decoding would be as fast as the plain target on this
machine. τ: tokens per target call. c: one drafting call over one plain target call. ROUGE is F1 x 100"""
ROUGE_WORDS = (
    " on words of any script (characters where it has no spaces), stemmed where the reference is English."
)
"""Reports of older results, on ASCII words alone, say nothing of them."""
ROUGE_LSUM = "Lsum goes sentence by sentence; the literature on CNN/DailyMail calls it ROUGE-L."
MIN_PROMPTS = 2
"""Prompts that a category needs to get a line of its own."""
MAX_CATEGORIES = 20
ACROSS = 6
"""Categories beside each other in a table."""
MOST_PAIRS = 30
"""Pairs of a temperature that are listed."""


def document(
    result: BenchmarkResult, speeds: Speeds, pictures: Sequence[Picture], found: Parts = NO_PARTS
) -> Document:
    """The whole report."""
    pairs = between_rows(speeds)
    opening: list[Block] = [
        *_warnings(result, speeds),
        *recommendation(result, speeds, pairs),
        *setting(result),
    ]
    sections = [
        _comparison(result),
        _pairs(speeds, pairs),
        engine(result),
        load(result),
        _pictures(pictures),
        _categories(result, speeds),
        *parts(found),
        _negative(result),
        _missing(result, speeds),
        _verdict(result),
        _setting(result),
        _drafters(result),
        _reproduce(result),
    ]
    return Document(
        f"Speculative decoding: {result.suite}",
        opening,
        [section for section in sections if section is not None],
    )


def _warnings(result: BenchmarkResult, speeds: Speeds) -> list[Block]:
    """What is wrong with the run, first of all."""
    problems = [f"{check.name}: {check.detail}" for check in result.checks if check.passed is False]
    n_prompts = int(result.provenance.get("n_prompts", 0))
    problems += [
        seen_note(info.name, info.training[N_SEEN], n_prompts)
        for info in result.drafters
        if info.training.get(N_SEEN)
    ]
    if speeds.unreadable:
        problems.insert(0, f"{speeds.unreadable}; what follows it is missing")
    if result.metrics_version != METRICS_VERSION:
        problems.insert(0, OUTDATED)
    if result.status != "complete":
        made = result.n_effective + result.n_failed
        problems.insert(0, f"the run is {result.status}: {made} of {result.n_requested} generations are there")
    return [Paragraph("; ".join(problems), "Read this first.", warning=True)] if problems else []


def _comparison(result: BenchmarkResult) -> Section:
    if not result.rows:
        return Section("Comparison", [Paragraph("There are no rows: the run did not finish.")])
    parts = []
    for temperature in temperatures_of(result.rows):
        rows = at(result.rows, temperature)
        rows.sort(key=_fastest_first)
        further = Table(*detail_cells(rows), folded="Further figures")
        parts.append(Section(f"Temperature {temperature:g}", [Table(*table_cells(rows)), further]))
    symbols = " ".join(SYMBOLS.split()) + _rouge_words(result)
    return Section("Comparison", [Paragraph("Sorted by measured speed-up. " + symbols)], parts)


def _rouge_words(result: BenchmarkResult) -> str:
    """How the run's ROUGE counts words, which L it is, and where its texts end."""
    found = [rouge.words for row in result.rows if (rouge := row.rouge_vs_reference or row.rouge_vs_target)]
    if not found:
        return "."
    end = result.config.get("decoding", {}).get("max_new_tokens")
    words = ROUGE_WORDS if "unicode" in found else "."
    return f"{words} {ROUGE_LSUM} Outputs end at {end} new tokens: ROUGE of whole texts is another."


def _pairs(speeds: Speeds, family: Family) -> Section | None:
    """Which methods differ from which, the largest differences first."""
    parts = []
    for temperature in speeds.temperatures:
        own = pairs_at(family, temperature)
        shown = own[:MOST_PAIRS]
        if own:
            table = Table(HEADER, [cells(found, speeds, "γ") for found in shown])
            title = f"Pairs at temperature {temperature:g}"
            parts.append(Section(title, [table, Paragraph(told(family, own, len(shown)))]))
    intro = (
        "Speed at the plain target's output lengths, paired by prompt; bounds and p-values hold for all pairs of "
        "the run at once (swaps of both sides within whole prompts, largest |t|). The last column: "
        "power 80 % for that pair."
    )
    return Section("Against each other", [Paragraph(intro)], parts) if parts else None


def _fastest_first(row: SummaryRow) -> float:
    if row.kind == "target":
        return -1.0
    return -row.speedup.value if row.speedup else 0.0


def _pictures(pictures: Sequence[Picture]) -> Section | None:
    return Section("Pictures", pictures) if pictures else None


def _categories(result: BenchmarkResult, speeds: Speeds) -> Section | None:
    """Speed-up of each method by the prompts' category, where a category has prompts enough."""
    sizes = Counter(speeds.categories.values())
    names = [name for name, n in sorted(sizes.items()) if n >= MIN_PROMPTS]
    shown = sorted(names, key=lambda name: -sizes[name])[:MAX_CATEGORIES]
    if len(sizes) < 2:
        return None
    if len(shown) < 2:
        text = (
            f"The {len(speeds.categories)} prompts fall into {len(sizes)} categories, too few each to compare."
        )
        return Section("By task category", [Paragraph(text)])
    left_out = sum(n for name, n in sizes.items() if name not in shown)
    note = f" {left_out} prompts of other categories are left out." if left_out else ""
    blocks = [Paragraph(f"Wall-clock speed-up with its 95 % interval over the category's prompts.{note}")]
    parts = [
        _category_table(result, speeds, shown, temperature) for temperature in temperatures_of(result.rows)
    ]
    return Section("By task category", blocks, parts)


def _category_table(
    result: BenchmarkResult, speeds: Speeds, names: Sequence[str], temperature: float
) -> Section:
    rows = at(result.rows, temperature)
    drafters = [row for row in sorted(rows, key=_fastest_first) if row.kind != "target"]
    lines = []
    for name in names:
        line = [name, str(sum(category == name for category in speeds.categories.values()))]
        for row in drafters:
            own = {prompt for prompt, category in speeds.categories.items() if category == name}
            found = speeds.speedup(group_of(row), prompts=own)
            line.append(interval(found.interval() if found else None, unit="x"))
        lines.append(line)
    header = ["category", "prompts", *(f"{row.method} γ={row.gamma}" for row in drafters)]
    return Section(f"Categories at temperature {temperature:g}", _by_method(header, lines))


def _by_method(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[Table]:
    """Methods down, categories with their numbers of prompts across; so many tables that none is wider than a page."""
    categories = [f"{name} ({n_prompts})" for name, n_prompts, *_ in lines]
    methods = [[method, *(line[place] for line in lines)] for place, method in enumerate(header[2:], start=2)]
    return [
        Table(
            ["method", *categories[first : first + ACROSS]],
            [[method[0], *method[1 + first : 1 + first + ACROSS]] for method in methods],
        )
        for first in range(0, len(categories), ACROSS)
    ]


def _negative(result: BenchmarkResult) -> Section | None:
    """What did not pay, as plainly as what did."""
    lines = []
    for row in sorted(result.rows, key=lambda row: (row.temperature, _fastest_first(row))):
        if row.speedup is None or standing(row) == "faster":
            continue
        slower = standing(row) == "slower"
        verdict = "slower than the plain target" if slower else "not shown to differ from the plain target"
        reached = number(row.alpha_counted.value if row.alpha_counted else None)
        needed = "never" if row.c is not None and row.break_even_alpha is None else number(row.break_even_alpha)
        lines.append(
            [
                row.method,
                f"{row.temperature:g}",
                str(row.gamma),
                interval(row.speedup_joint or row.speedup, unit="x"),
                verdict,
                reached,
                needed,
            ]
        )
    if not lines:
        return None
    header = ["method", "temperature", "γ", "speed-up, jointly", "result", "α reached", "α needed"]
    return Section("What did not pay", [Table(header, lines)])


def _missing(result: BenchmarkResult, speeds: Speeds) -> Section | None:
    """Failed generations by method, and rows without a figure."""
    lines = [
        [method, f"{temperature:g}", str(gamma), f"{len(reasons)} failed", reasons[0]]
        for (method, temperature, gamma), reasons in sorted(speeds.failures.items())
    ]
    lines += [
        [
            row.method,
            f"{row.temperature:g}",
            str(row.gamma),
            "no speed-up",
            "no prompt was decoded by both it and the target",
        ]
        for row in result.rows
        if row.kind != "target" and row.speedup is None
    ]
    header = ["method", "temperature", "γ", "what", "why (first)"]
    return Section("What is missing", [Table(header, lines)]) if lines else None


def _verdict(result: BenchmarkResult) -> Section | None:
    words = {True: "passed", False: "FAILED", None: "not judged"}
    lines = [[check.name, words[check.passed], check.detail] for check in result.checks]
    title = "Can the numbers be trusted?"
    return Section(title, [Table(["check", "result", "figures"], lines)]) if lines else None


def _setting(result: BenchmarkResult) -> Section:
    hardware, packages = result.provenance.get("hardware", {}), result.provenance.get("packages", {})
    decoding, data = result.config.get("decoding", {}), result.config.get("data", {})
    target = f"{result.target.source}, {_size(result.target.n_parameters)}, {result.provenance.get('dtype')}"
    n_prompts = result.provenance.get("n_prompts")
    facts = [
        ["hardware", f"{processor(result)} ({hardware.get('platform')})"],
        ["target", f"{target}, reads {result.target.bytes_per_step / 1e6:.0f} MB a step"],
        ["data", f"{data.get('source')}, {data.get('split')} split, {n_prompts} prompts"],
        ["prompts cut to fit", f"{result.provenance.get('n_truncated_prompts')}"],
        ["new tokens", f"at most {decoding.get('max_new_tokens')} a generation"],
        ["generations", f"{result.n_requested} requested, {result.n_effective} made, {result.n_failed} failed"],
        *_copied(result),
        ["software", ", ".join(f"{name} {version}" for name, version in packages.items())],
        ["started", str(result.provenance.get("created"))],
    ]
    how = (
        "All methods decode the same prompts in one process and one seeded random order, after a warm-up; the clock "
        "stops before and after each call; every record is on disk before the next begins."
    )
    return Section("How it was measured", [Paragraph(how), Table(["what", "value"], facts)])


def _copied(result: BenchmarkResult) -> list[list[str]]:
    """What suffix_lookup copied from besides the request's own text; nothing where there was no more."""
    asked, corpus = result.config.get("copying", {}), result.provenance.get("corpus")
    more = [f"{asked.get('corpus')} ({corpus['n_tokens']:,} tokens)"] if corpus else []
    more += ["what the same row wrote to earlier prompts"] if asked.get("earlier_outputs") else []
    return [[f"{SUFFIX} copies from", " and ".join(["the request's own text", *more])]] if more else []


def _drafters(result: BenchmarkResult) -> Section | None:
    sizes = ["parameters", "layers", "head rows", "weights read a step"]
    header = ["drafter", "trained by", *sizes, "steps", "tokens", "s"]
    lines = [
        [
            info.name,
            info.method or "not ours",
            _size(info.n_parameters),
            str(info.n_layers),
            str(info.draft_vocabulary or "all"),
            f"{info.bytes_per_step / 1e6:.0f} MB",
            str(info.training.get("steps", "–")),
            str(info.training.get("trained_tokens", "–")),
            number(info.training.get("wall_s"), 0),
        ]
        for info in result.drafters
    ]
    return Section("Drafters", [Table(header, lines)]) if lines else None


def _reproduce(result: BenchmarkResult) -> Section:
    git = result.provenance.get("git", {})
    commit = f" at commit {git['commit']}" if git else ""
    version = result.provenance.get("specalign")
    source = f"specalign {version}{commit}, metric definitions version {result.metrics_version}:"
    output = result.config.get("output", "RUN")
    commands = [*([f"git checkout {git['commit']}"] if git else []), shlex.join(result.command)]
    commands.append(f"specalign-bench report {shlex.quote(Path(str(output)).as_posix())}")
    files = (
        "records.jsonl holds every generation with its counts and times a step; result.json the figures above."
    )
    return Section("How to reproduce it", [Paragraph(source), Code("\n".join(commands)), Paragraph(files)])


def _size(n_parameters: int) -> str:
    return f"{n_parameters / 1e9:.2f}B" if n_parameters >= 1e9 else f"{n_parameters / 1e6:.1f}M"
