"""A GGUF file is converted once, whatever became of the process that tried before."""

from pathlib import Path

import pytest

from specalign.errors import UserError
from specalign.models import gguf


def test_a_conversion_leaves_the_checkpoint_and_no_part_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = tmp_path / "tiny.gguf", []
    file.write_bytes(b"GGUF")
    monkeypatch.setenv("SPECALIGN_CACHE", str(tmp_path / "cache"))

    def convert(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        calls.append(folder)
        if len(calls) == 1:
            raise UserError("no")

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(UserError, match="no"):
        gguf.convert_gguf(file)
    assert not calls[0].exists()
    calls[0].mkdir()  # as a killed process leaves it
    (calls[0] / "model.safetensors").write_text("a part")
    made = gguf.convert_gguf(file)
    assert gguf.convert_gguf(file) == made
    assert [path.name for path in made.iterdir()] == ["config.json"]
    assert len(calls) == 2
    assert not calls[0].exists()
