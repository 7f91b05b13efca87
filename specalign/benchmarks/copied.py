"""What suffix_lookup copies from besides a request's own text: a corpus, and what its row of the run wrote before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from specalign.benchmarks.cells import Cell
from specalign.benchmarks.config import CopyingConfig
from specalign.data.corpus import corpus_sha256, corpus_texts
from specalign.decoding import Drafter, SuffixIndex, with_corpora
from specalign.decoding.copying import BREAK
from specalign.errors import UserError
from specalign.records import GenerationRecord

MOST_TOKENS = 1_000_000
"""Of one index: it takes about a kilobyte a token."""
Row = tuple[str, float, int, int]
"""(Method, temperature, gamma, repeat): it decodes each prompt once, so that none finds its own answer."""


@dataclass(frozen=True)
class Corpus:
    """Text that is there before the run."""

    index: SuffixIndex
    facts: dict[str, Any]
    """Files, tokens and a hash, for the provenance."""


def read_corpus(config: CopyingConfig, tokenizer: PreTrainedTokenizerBase) -> Corpus | None:
    """The index of the files that ``copying.corpus`` names, None without. Raises UserError for too many tokens."""
    if not config.corpus:
        return None
    index, n_texts, n_tokens = SuffixIndex(), 0, 0
    for text in corpus_texts(config.corpus):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        n_texts, n_tokens = n_texts + 1, n_tokens + len(ids)
        if n_tokens > MOST_TOKENS:
            raise UserError(
                f"copying.corpus: {config.corpus} has more than {MOST_TOKENS:,} tokens: name fewer or shorter files"
            )
        index.extend([*ids, BREAK])
    facts = {"n_files": n_texts, "n_tokens": n_tokens, "sha256": corpus_sha256(config.corpus)}
    return Corpus(index, facts)


class Copied:
    """What each row may copy from, growing with the run. A request reads it and leaves it as it is."""

    def __init__(
        self, config: CopyingConfig, corpus: Corpus | None, records: Iterable[GenerationRecord] = ()
    ) -> None:
        self.config, self.corpus = config, corpus
        self.written: dict[Row, SuffixIndex] = {}
        self.n_tokens: dict[Row, int] = {}
        for record in records:
            self.add(record)

    def add(self, record: GenerationRecord) -> None:
        """Let later requests of the same row copy from a good generation; at most ``MOST_TOKENS`` in all."""
        if not self.config.earlier_outputs or record.status != "ok":
            return
        row = record.method, record.temperature, record.gamma, record.repeat
        n_tokens = self.n_tokens.get(row, 0) + len(record.token_ids)
        if n_tokens <= MOST_TOKENS:
            self.n_tokens[row] = n_tokens
            self.written.setdefault(row, SuffixIndex()).extend([*record.token_ids, BREAK])

    def beside(self, drafter: Drafter, cell: Cell) -> Drafter:
        """The drafter as it decodes this generation."""
        own = self.written.get((cell.method, cell.temperature, cell.gamma, cell.repeat))
        corpora = [index for index in (self.corpus and self.corpus.index, own) if index]
        return with_corpora(drafter, corpora) if corpora else drafter
