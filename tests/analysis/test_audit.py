"""Sabotaged copies of a run, with their hashes renewed: each is told, or docs/metrics.md says why it cannot be."""

import copy
import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specalign.analysis.audit import AtHand, Audit, audit
from specalign.analysis.consistency import unlike_the_clock
from specalign.analysis.summary import summarise
from specalign.analysis.verdict import trust_checks
from specalign.benchmarks import runner
from specalign.benchmarks.at_hand import at_hand
from specalign.benchmarks.cli import main, parse_run
from specalign.chain import links
from specalign.errors import UserError, run_cli
from specalign.files import file_sha256
from specalign.run_files import (
    PROBES_FILE,
    RECORDS_FILE,
    RESULT_FILE,
    RunFiles,
    read_probes,
    read_records,
    read_result,
    write_result,
)

Line = dict[str, Any]
PUBLISHED = sorted(path.parent for path in (Path(__file__).parents[2] / "reports").glob("**/result.json"))


def published(folder: Path) -> Any:
    """A parameter; long runs take seconds."""
    long = read_result(folder).n_requested > 300
    return pytest.param(
        folder, id=f"{folder.parent.name}/{folder.name}", marks=[pytest.mark.slow] if long else []
    )


class Forged(SimpleNamespace):
    """A run's files as a saboteur edits them."""

    result: Line
    records: list[Line]
    probes: list[Line]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, data_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("audit") / "run"
    drafters = [f"{name}={models_folder / name}" for name in ("copy", "small")]
    words = f"--target.model {models_folder / 'target'} --data.source {data_file} --output {folder}".split()
    words += [
        "--data.split",
        "all",
        "--device",
        "cpu",
        "--threads",
        "1",
        "--decoding.gammas",
        "2",
        "--decoding.max-new-tokens",
        "40",
    ]
    runner.run(parse_run([*words, "--drafter", *drafters]))
    return folder


@pytest.fixture(scope="module")
def inputs(honest: Path) -> AtHand:
    return at_hand(honest)


@pytest.fixture
def forge(honest: Path, inputs: AtHand, tmp_path: Path) -> Callable[..., Audit]:
    """forge(edit) -> what an audit finds in an edited copy, its hashes renewed, and chain and figures if asked."""

    def made(edit: Callable[[Forged], None], *, chain: bool = False, figures: bool = False) -> Audit:
        lines = {
            name: [json.loads(line) for line in (honest / name).read_text().splitlines()]
            for name in (RECORDS_FILE, PROBES_FILE)
        }
        result = json.loads((honest / RESULT_FILE).read_text())
        forged = Forged(result=result, records=lines[RECORDS_FILE], probes=lines[PROBES_FILE])
        edit(forged)
        written(tmp_path, forged)
        if chain:
            for line, (_, due) in zip(
                forged.records, links(tmp_path / RECORDS_FILE, read_result(tmp_path)), strict=True
            ):
                line["chain"] = due
            written(tmp_path, forged)
        if figures:
            renew_figures(tmp_path)
        return audit(tmp_path, inputs)

    return made


Forge = Callable[..., Audit]


def written(folder: Path, forged: Forged) -> None:
    for name, lines in ((RECORDS_FILE, forged.records), (PROBES_FILE, forged.probes)):
        text = "".join(json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n" for line in lines)
        (folder / name).write_text(text)
        forged.result[name.replace(".jsonl", "_sha256")] = file_sha256(folder / name)
    (folder / RESULT_FILE).write_text(json.dumps(forged.result))


def renew_figures(folder: Path) -> None:
    result, records = read_result(folder), list(read_records(folder / RECORDS_FILE))
    probes = read_probes(folder / PROBES_FILE)
    rows = summarise(records, None, probes)
    checks = trust_checks(result, records, rows, probes)
    write_result(folder, dataclasses.replace(result, rows=rows, checks=checks))


def of(forged: Forged, method: str, temperature: float | None = None) -> list[Line]:
    return [r for r in forged.records if r["method"] == method and temperature in (None, r["temperature"])]


def test_an_honest_run_has_no_problem_and_nothing_unchecked(honest: Path, inputs: AtHand) -> None:
    found = audit(honest, inputs)
    assert (found.problems, found.unchecked) == ([], [])
    assert inputs.references is not None


def test_a_copy_that_was_only_written_anew_is_honest(forge: Forge) -> None:
    assert forge(lambda forged: None, chain=True, figures=True).problems == []


@pytest.mark.parametrize("folder", [published(folder) for folder in PUBLISHED])
def test_published_runs_have_no_problem(folder: Path) -> None:
    found = audit(folder, AtHand())
    assert found.problems == []
    assert found.unchecked


def flip_checks(forged: Forged) -> None:
    for check in forged.result["checks"]:
        check["passed"] = not check["passed"]


def drop_checks(forged: Forged) -> None:
    del forged.result["checks"][0]


def drop_row(forged: Forged) -> None:
    forged.result["rows"] = [row for row in forged.result["rows"] if row["method"] != "small"]


def null_figures(forged: Forged) -> None:
    for row in forged.result["rows"]:
        row["break_even_alpha"] = row["predicted_speedup"] = row["tau"] = None


def null_bounds(forged: Forged) -> None:
    for row in forged.result["rows"]:
        row["tokens_per_s"]["low"] = row["tokens_per_s"]["high"] = None


def rewrite_text_of_a_check(forged: Forged) -> None:
    forged.result["checks"][0]["detail"] = "all is well"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (flip_checks, "the check 'lossless' says failed"),
        (drop_checks, "the check 'lossless' is missing"),
        (rewrite_text_of_a_check, "the check 'lossless' says passed (all is well), the raw files give passed"),
        (drop_row, "small, temperature 0, gamma 2: its row is missing"),
        (null_figures, "tau is None, the raw files give"),
        (null_bounds, "tokens_per_s is"),
        (lambda forged: forged.result.update(n_effective=7), "n_effective is 7"),
    ],
)
def test_a_result_that_does_not_follow(forge: Forge, edit: Callable[[Forged], None], told: str) -> None:
    assert told in "; ".join(forge(edit).problems)


def hardware(forged: Forged) -> None:
    forged.result["provenance"]["hardware"]["cpu"] = "a faster one"


def commit(forged: Forged) -> None:
    forged.result["provenance"]["git"] = {"commit": "0" * 40, "dirty": False}


def invent(forged: Forged) -> None:
    """Other ids and steps at temperature 1, with the texts that they decode to."""
    for record in of(forged, "small", 1.0):
        record["token_ids"] = [random.Random(0).randrange(3, 60) for _ in record["token_ids"]]
        record["text"] = " ".join(f"w{token - 3}" for token in record["token_ids"])
        record["steps"]["overlap"] = [[0.9] * len(step) for step in record["steps"]["overlap"]]


@pytest.mark.parametrize("edit", [hardware, commit, invent], ids=lambda edit: edit.__name__)
def test_only_the_chain_tells(
    forge: Forge, edit: Callable[[Forged], None], honest: Path, inputs: AtHand
) -> None:
    """And, where the chain is renewed too, the seal that the run was published with."""
    assert "the chain is broken" in "; ".join(forge(edit, figures=True).problems)
    renewed = forge(edit, chain=True, figures=True)
    assert not [told for told in renewed.problems if "chain" in told]
    assert renewed.seal != audit(honest, inputs).seal


def test_a_chain_that_was_taken_out(forge: Forge) -> None:
    def strip(forged: Forged) -> None:
        for record in forged.records:
            record["chain"] = ""

    assert "the chain is broken" in "; ".join(forge(strip).problems)

    def back_to_version_1(forged: Forged) -> None:
        forged.result["schema_version"] = 1
        for record in forged.records:
            record |= {"schema_version": 1, "chain": ""}

    assert any("records are not chained" in told for told in forge(back_to_version_1).unchecked)


def fewer_requested(forged: Forged) -> None:
    forged.result["n_requested"] -= 4


def drop_records(forged: Forged) -> None:
    """The slowest generation of a drafter, and the count of what was asked for."""
    slowest = max(of(forged, "small"), key=lambda record: record["wall_s"])
    forged.records.remove(slowest)
    forged.probes = [
        p for p in forged.probes if p.get("prompt_id") != slowest["prompt_id"] or p["kind"] == "forced"
    ]
    forged.result["n_requested"] -= 1


def scale_wall(forged: Forged) -> None:
    for record in of(forged, "small"):
        record["wall_s"] *= 0.9


def scale_wholes(forged: Forged) -> None:
    for record in of(forged, "small"):
        for key in ("prefill_s", "decode_s", "wall_s"):
            record[key] *= 0.8


def replace_texts(forged: Forged) -> None:
    for record in of(forged, "small"):
        record["text"] = record["reference"]


def replace_references(forged: Forged) -> None:
    for record in forged.records:
        record["reference"] = f"{record['prompt_id']} is a good answer"


def replace_one_reference(forged: Forged) -> None:
    forged.records[3]["reference"] = forged.records[3]["text"]


def invent_ids(forged: Forged) -> None:
    for record in of(forged, "small", 1.0):
        record["token_ids"] = [3 + (token + 1) % 50 for token in record["token_ids"]]


def not_interleaved(forged: Forged) -> None:
    forged.records.sort(key=lambda record: (record["method"], record["temperature"], record["prompt_id"]))
    for order, record in enumerate(forged.records):
        record["order"] = order


def swap_labels(forged: Forged) -> None:
    other = {"copy": "small", "small": "copy"}
    for line in [*forged.records, *forged.probes]:
        if "method" in line:
            line["method"] = other.get(line["method"], line["method"])


def accept_more(forged: Forged) -> None:
    for record in of(forged, "small", 0.0):
        steps = record["steps"]
        steps["n_accepted"] = [
            min(n + 1, drafted) for n, drafted in zip(steps["n_accepted"], steps["n_drafted"], strict=True)
        ]
        steps["n_examined"] = copy.copy(steps["n_accepted"])


def drop_sampled_probes(forged: Forged) -> None:
    forged.probes = [p for p in forged.probes if p["kind"] != "sampled"]


def shorten_forced_probes(forged: Forged) -> None:
    for probe in forged.probes:
        if probe["kind"] == "forced" and probe["method"] == "small":
            probe["overlap"] = [1.0]


def shrink_the_drafter(forged: Forged) -> None:
    for info in forged.result["drafters"]:
        info["bytes_per_step"] //= 2


def another_rule(forged: Forged) -> None:
    for record in of(forged, "small", 1.0):
        record["rule"] = "greedy"


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (fewer_requested, "the config plans"),
        (drop_records, "records of 32 generations that the config plans"),
        (scale_wall, "wall_s is"),
        (scale_wholes, "its steps come to"),
        (replace_texts, "are not what their ids decode to"),
        (replace_references, "the references are not those that the run began with"),
        (replace_one_reference, "has 2 references, categories or lengths"),
        (invent_ids, "are not what their ids decode to"),
        (not_interleaved, "the config's random order has another generation there"),
        (swap_labels, "the config's random order has another generation there"),
        (accept_more, "a greedy step accepted"),
        (drop_sampled_probes, "no probe 'sampled' of this output"),
        (shorten_forced_probes, "no probe 'forced' of small along this output"),
        (shrink_the_drafter, "the size of copy is another in probes.jsonl"),
        (another_rule, "rule is 'greedy', by the config 'token'"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_told_although_chain_and_figures_are_renewed(
    forge: Forge, edit: Callable[[Forged], None], told: str
) -> None:
    problems = forge(edit, chain=True, figures=True).problems
    assert told in "; ".join(problems)
    assert not [problem for problem in problems if "chain" in problem or "raw files" in problem]


def test_records_that_are_there_twice(forge: Forge) -> None:
    def duplicate(forged: Forged) -> None:
        forged.records += [record | {"order": 32 + place} for place, record in enumerate(forged.records[:4])]
        forged.result["n_requested"] += 4

    with pytest.raises(UserError, match="line 33: the same generation as line 1"):
        forge(duplicate)


def test_a_run_that_says_that_it_is_not_complete(forge: Forge) -> None:
    """No command holds the folder of one that says "running": it was killed, as report and deploy say too."""
    for status in ("interrupted", "running"):
        found = forge(lambda forged, status=status: forged.result.update(status=status))
        assert "the run is not complete (interrupted)" in found.problems[0]


@pytest.mark.parametrize(
    ("scaled", "told"), [((), ""), (("wall_s",), "of a call"), (("wall_s", "call_s"), "pass after")]
)
def test_times_of_one_method_scaled_by_nine_tenths(
    forge: Forge, honest: Path, scaled: tuple[str, ...], told: str
) -> None:
    """Generations of two seconds, one after the other, of two methods in turn."""
    first = next(iter(read_records(honest / RECORDS_FILE)))
    records, now = [], 1000.0
    for order in range(40):
        method, seconds = ("target", 2.0) if order % 2 else ("small", 1.6 + 0.02 * (order % 5))
        due = dataclasses.replace(
            first, method=method, order=order, begun_at=now, call_s=seconds + 0.001, wall_s=seconds, status="ok"
        )
        changes = {name: 0.9 * getattr(due, name) for name in scaled if method == "small"}
        records.append(dataclasses.replace(due, **changes))
        now += seconds + 0.03
    found = unlike_the_clock(RunFiles(read_result(honest), records, []))
    assert all(line.startswith("small, ") and told in line for line in found)
    assert bool(found) is bool(scaled)


@pytest.mark.parametrize("command", ["verify", "report", "explain"])
@pytest.mark.parametrize("fault", ["bytes", "wall_s"])
def test_what_cannot_be_read_is_one_line(
    honest: Path, tmp_path: Path, command: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (RECORDS_FILE, PROBES_FILE, RESULT_FILE):
        (tmp_path / name).write_bytes((honest / name).read_bytes())
    path = tmp_path / RECORDS_FILE
    content = path.read_bytes()
    record = json.loads(content.splitlines()[0])
    wrong = content.replace(b'"text":"', b'"text":"\xff', 1)
    if fault == "wall_s":
        wrong = content.replace(f'"wall_s":{record["wall_s"]!r}'.encode(), b'"wall_s":-1.0', 1)
    assert wrong != content
    path.write_bytes(wrong)
    write_result(tmp_path, dataclasses.replace(read_result(tmp_path), records_sha256=file_sha256(path)))
    code = run_cli("specalign-bench", lambda: main([command, str(tmp_path)]))
    shown = capsys.readouterr()
    assert code in ((2,) if command != "report" else (0, 2))
    if code == 2:
        (line,) = shown.err.splitlines()
        assert "records.jsonl, line 1" in line


def test_the_command_prints_the_seal_and_holds_it_against_another(
    honest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["verify", str(honest)])
    seal = capsys.readouterr().out.splitlines()[-1].removeprefix("seal: ")
    main(["verify", str(honest), "--seal", seal[:16]])
    with pytest.raises(UserError, match=f"the seal is {seal}, not {'0' * 64}"):
        main(["verify", str(honest), "--seal", "0" * 64])


def test_a_run_of_two_sessions_is_honest_and_its_second_machine_is_chained_too(
    bench: Callable[..., list[str]], inputs: AtHand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_run(bench(drafters=("small",))[1:])
    make_one, made = runner._generate_one, list[Any]()

    def interrupted(*arguments: Any) -> Any:
        if len(made) == 5:
            raise KeyboardInterrupt
        made.append(make_one(*arguments))
        return made[-1]

    monkeypatch.setattr(runner, "_generate_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(config)
    monkeypatch.setattr(runner, "_generate_one", make_one)
    runner.run(config)
    folder = tmp_path / "run"
    assert audit(folder, inputs).problems == []
    result = read_result(folder)
    (session,) = result.provenance["resumed"]
    assert session["after"] == 5
    session["hardware"]["cpu"] = "a faster one"
    write_result(folder, result)
    assert "the chain is broken" in audit(folder, inputs).problems[0]
