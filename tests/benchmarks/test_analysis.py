"""The commands that read finished runs: convert, verify, schema."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from specalign.benchmarks import runner
from specalign.benchmarks.cli import main, parse_run
from specalign.errors import UserError
from specalign.run_files import PROBES_FILE, RECORDS_FILE, SCHEMAS, read_result, write_result

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "schemas"
DEMO = next((ROOT / "reports").glob("*_demo*"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, models_folder: Path, data_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("analysis") / "run"
    words = f"--target.model {models_folder / 'target'} --data.source {data_file} --output {folder}".split()
    words += ["--data.split", "all"]
    runner.run(
        parse_run([*words, "--decoding.max-new-tokens", "8", "--drafter", f"copy={models_folder / 'copy'}"])
    )
    return folder


def test_convert_shows_one_project_or_all(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["convert", str(run), "--to", "vllm"])
    shown = capsys.readouterr().out
    assert "copy, temperature 0, gamma 4\n  vllm: draft acceptance rate = 1.0000" in shown
    assert "eagle" not in shown
    main(["convert", str(run)])
    everything = capsys.readouterr().out
    assert all(project in everything for project in ("vllm", "sglang", "spec-bench", "eagle", "deepspec"))
    with pytest.raises(UserError, match="--to"):
        main(["convert", str(run), "--to", "tgi"])


@pytest.mark.parametrize("kind", SCHEMAS)
def test_published_schemas_are_the_current_ones(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """After a change: specalign-bench schema --of KIND > docs/schemas/KIND.json."""
    main(["schema", "--of", kind])
    assert (PUBLISHED / f"{kind}.json").read_text(encoding="utf-8") == capsys.readouterr().out


def test_the_files_of_a_run_fit_the_published_schemas(run: Path) -> None:
    schemas = {kind: json.loads((PUBLISHED / f"{kind}.json").read_text(encoding="utf-8")) for kind in SCHEMAS}
    jsonschema.validate(json.loads((run / "result.json").read_text()), schemas["result"])
    jsonschema.validate(json.loads((DEMO / "result.json").read_text()), schemas["result"])
    for name, kind in ((RECORDS_FILE, "record"), (PROBES_FILE, "probe")):
        for line in (run / name).read_text().splitlines():
            jsonschema.validate(json.loads(line), schemas[kind])


def test_a_schema_that_there_is_not() -> None:
    with pytest.raises(UserError, match="--of"):
        main(["schema", "--of", "results"])


@pytest.mark.parametrize("folder", ["run", "demo"])
def test_a_true_run_verifies(run: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(run if folder == "run" else DEMO)])
    assert "all figures of" in capsys.readouterr().out


def test_an_embellished_figure_is_found(run: Path) -> None:
    result = read_result(run)
    place = next(index for index, row in enumerate(result.rows) if row.method == "copy")
    rows = list(result.rows)
    speedup = rows[place].speedup
    assert speedup is not None
    rows[place] = dataclasses.replace(rows[place], speedup=dataclasses.replace(speedup, value=9.0))
    write_result(run, dataclasses.replace(result, rows=rows))
    with pytest.raises(UserError, match=r"copy, temperature 0, gamma 4: speedup is 9\.0, the raw files give"):
        main(["verify", str(run)])
    write_result(run, result)


@pytest.mark.parametrize("command", ["explain", "convert", "verify", "seeds"])
def test_a_tampered_or_missing_run_is_refused(run: Path, tmp_path: Path, command: str) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        main([command, str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match=f"{command} takes"):
        main([command])
    for name in ("result.json", RECORDS_FILE, PROBES_FILE):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / RECORDS_FILE).write_bytes((run / RECORDS_FILE).read_bytes()[:-100])
    with pytest.raises(UserError, match="was changed after the run"):
        main([command, str(tmp_path)])
