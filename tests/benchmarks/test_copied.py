"""suffix_lookup copies from a corpus and from earlier outputs of its row, never from the answer that it is to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from specalign.benchmarks.cli import main, parse_run
from specalign.benchmarks.config import CopyingConfig
from specalign.benchmarks.copied import Copied, read_corpus
from specalign.data.corpus import corpus_files, corpus_sha256, corpus_texts
from specalign.decoding import DraftCosts, SuffixLookup
from specalign.errors import UserError
from specalign.models.load import load_tokenizer
from specalign.records import GenerationRecord
from specalign.run_files import RECORDS_FILE, read_records, read_result

Bench = Callable[..., list[str]]


def folder(tmp_path: Path) -> Path:
    """Two texts, one of them deeper, an image, and something hidden."""
    (tmp_path / "corpus" / "more").mkdir(parents=True)
    (tmp_path / "corpus" / ".git").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("w1 w2 w3")
    (tmp_path / "corpus" / "more" / "b.py").write_text("w4 w5")
    (tmp_path / "corpus" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n\0")
    (tmp_path / "corpus" / ".git" / "d.txt").write_text("w6")
    return tmp_path / "corpus"


def test_a_corpus_is_all_texts_of_a_folder_in_order(tmp_path: Path) -> None:
    corpus = folder(tmp_path)
    assert [path.name for path in corpus_files(str(corpus))] == ["a.txt", "c.png", "b.py"]
    assert list(corpus_texts(str(corpus))) == ["w1 w2 w3", "w4 w5"]
    assert list(corpus_texts(str(corpus / "a.txt"))) == ["w1 w2 w3"]
    before = corpus_sha256(str(corpus))
    (corpus / "more" / "b.py").write_text("w4 w6")
    assert corpus_sha256(str(corpus)) != before
    for name, message in (
        ("c.png", "has no UTF-8 text"),
        ("none", "no such data file"),
        ("empty", "has no files"),
    ):
        (corpus / "empty").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            list(corpus_texts(str(corpus / name)))


def test_a_corpus_beyond_what_is_indexed_is_refused(
    models_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, tokenizer = CopyingConfig(str(folder(tmp_path))), load_tokenizer(str(models_folder / "target"))
    found = read_corpus(config, tokenizer)
    assert found
    assert {key: found.facts[key] for key in ("n_files", "n_tokens")} == {"n_files": 2, "n_tokens": 5}
    monkeypatch.setattr("specalign.benchmarks.copied.MOST_TOKENS", 4)
    with pytest.raises(UserError, match="has more than 4 tokens"):
        read_corpus(config, tokenizer)


def record(prompt: str, method: str, temperature: float = 0.0, repeat: int = 0) -> GenerationRecord:
    return GenerationRecord(
        method, prompt, "", repeat, 0, temperature, 0, 1.0, 3, "token", True, 0, 5, "ok", token_ids=[4, 5, 6]
    )  # fmt: skip


def test_a_row_copies_from_what_it_wrote_itself_and_from_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is one method, temperature, draft length and repeat: it meets each prompt once."""
    monkeypatch.setattr("specalign.benchmarks.copied.MOST_TOKENS", 7)
    copied = Copied(CopyingConfig(earlier_outputs=True), None)
    copied.add(record("a", "suffix_lookup"))
    copied.add(replace(record("b", "suffix_lookup"), status="failed"))
    copied.add(record("a", "suffix_lookup", temperature=1.0))
    copied.add(record("a", "suffix_lookup", repeat=1))
    copied.add(record("a", "target"))
    assert {row: index.match.length for row, index in copied.written.items()} == {
        ("suffix_lookup", 0.0, 3, 0): 0,
        ("suffix_lookup", 1.0, 3, 0): 0,
        ("suffix_lookup", 0.0, 3, 1): 0,
        ("target", 0.0, 3, 0): 0,
    }
    for prompt in ("b", "c"):
        copied.add(record(prompt, "suffix_lookup"))
    assert copied.n_tokens["suffix_lookup", 0.0, 3, 0] == 6, "no more than are indexed"
    nothing = Copied(CopyingConfig(), None, [record("a", "suffix_lookup")])
    assert nothing.written == {}


def test_a_run_copies_from_a_corpus_and_from_earlier_outputs_and_stays_lossless(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outputs of another run as the corpus: more is accepted, and the tokens are the same."""
    cheap = DraftCosts(0.0, (1.0, 1.01))  # whatever else the machine does meanwhile
    monkeypatch.setattr("specalign.benchmarks.adaptive._costs", lambda *_: cheap)
    words = ("--include", "suffix_lookup", "--decoding.temperatures", "0", "--limit", "4")
    main(bench(*words, "--output", str(tmp_path / "plain"), drafters=()))
    made = list(read_records(tmp_path / "plain" / RECORDS_FILE))
    (tmp_path / "corpus.txt").write_text("\n".join(record.text for record in made if record.method == "target"))
    more = ("--copying.corpus", str(tmp_path / "corpus.txt"), "--copying.earlier-outputs")
    flags = bench(*words, *more, "--output", str(tmp_path / "more"), drafters=())
    main(flags)
    found = list(read_records(tmp_path / "more" / RECORDS_FILE))
    key = lambda each: (each.prompt_id, each.method)  # noqa: E731
    assert [each.token_ids for each in sorted(found, key=key)] == [
        each.token_ids for each in sorted(made, key=key)
    ]
    accepted = [sum(sum(each.steps.n_accepted) for each in run if each.steps) for run in (made, found)]
    assert accepted[1] > accepted[0]
    result = read_result(tmp_path / "more")
    assert result.provenance["corpus"]["sha256"] == corpus_sha256(str(tmp_path / "corpus.txt"))
    report = (tmp_path / "more" / "report.md").read_text(encoding="utf-8")
    assert "suffix\\_lookup copies from" in report
    assert "what the same row wrote to earlier prompts" in report
    main(["verify", str(tmp_path / "more")])
    (tmp_path / "corpus.txt").write_text("w1")
    with pytest.raises(UserError, match=r"differs in the content of copying\.corpus"):
        main(flags)


def test_a_composition_copies_from_them_too(bench: Bench, tmp_path: Path) -> None:
    from specalign.benchmarks.adaptive import with_costs
    from specalign.benchmarks.cells import cells
    from specalign.benchmarks.suite import load_suite
    from specalign.decoding import Hybrid

    (tmp_path / "corpus.txt").write_text("w1 w2 w3")
    words = ["--include", "suffix_lookup", "--compose", "fast=suffix_lookup+copy"]
    words += ["--copying.corpus", str(tmp_path / "corpus.txt"), "--limit", "1"]
    config = parse_run(bench(*words, drafters=("copy",))[1:])
    suite = with_costs(load_suite(config), config)
    corpus = read_corpus(config.copying, suite.tokenizer)
    assert corpus
    cell = next(cell for cell in cells(suite, config) if cell.method == "fast")
    drafter = suite.drafters["fast"]
    assert drafter
    beside = Copied(config.copying, corpus).beside(drafter, cell)
    assert isinstance(beside, Hybrid)
    first, second = beside.parts
    assert isinstance(first, SuffixLookup)
    assert first.corpora == (corpus.index,)
    assert second is drafter.parts[1]  # type: ignore[attr-defined]


def test_what_copies_from_nothing_is_refused(bench: Bench, tmp_path: Path) -> None:
    for flag in (["--copying.corpus", str(tmp_path)], ["--copying.earlier-outputs"]):
        with pytest.raises(UserError, match="are for suffix_lookup: --include suffix_lookup"):
            parse_run(bench("--include", "prompt_lookup", *flag)[1:])
