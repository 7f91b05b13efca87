"""The layers of the package: who may import whom, and what stays instant."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import specalign

PACKAGE = Path(specalign.__file__).parent
LOWER = ("losses", "models", "data", "decoding", "metrics", "serving")
HEAVY = ("torch", "transformers", "matplotlib", "datasets", "scipy", "pandas")
NUMERIC = {"torch", "numpy", "scipy"}
MOST_LINES = 350


def modules(folder: str) -> list[Path]:
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found, folder
    return found


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_from(folder: str, *packages: str) -> list[str]:
    """The imports of ``folder`` that come from one of specalign's ``packages``."""
    prefixes = tuple(f"specalign.{package}" for package in packages)
    return [
        f"{path.name}: {name}"
        for path in modules(folder)
        for name in imports(path)
        if name.startswith(prefixes)
    ]


@pytest.mark.parametrize("folder", LOWER)
def test_lower_layers_never_import_the_upper_ones(folder: str) -> None:
    assert not imports_from(folder, "training", "benchmarks", "analysis", "reports")


def test_training_and_benchmarks_are_strangers() -> None:
    assert not imports_from("training", "benchmarks", "analysis", "reports")
    assert not imports_from("benchmarks", "training")


def test_what_is_for_callers_from_python_is_imported_by_none_of_the_package() -> None:
    for folder in (path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("*.py"))):
        assert not imports_from(folder, "api", "outcomes", "given"), folder


def test_reports_know_results_and_what_follows_from_them() -> None:
    assert not imports_from("reports", "losses", "models", "data", "decoding", "training", "benchmarks")


def test_analysis_reads_files_and_knows_no_engine() -> None:
    assert not imports_from("analysis", "losses", "models", "data", "decoding", "serving")
    assert not imports_from("analysis", "training", "benchmarks", "reports")
    names = [f"specalign.analysis.{path.stem}" for path in modules("analysis")]
    code = f"import sys, importlib\n[importlib.import_module(name) for name in {names!r}]\n"
    code += "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_engine_knows_no_tokenizer() -> None:
    assert not imports_from("decoding", "data")
    names = {name for path in modules("decoding") for name in imports(path)}
    assert not {name for name in names if "okenizer" in name}


def test_serving_talks_to_engines_and_imports_none() -> None:
    assert not imports_from("serving", "losses", "models", "data", "decoding")
    names = {name.split(".")[0] for path in modules("serving") for name in imports(path)}
    assert not names & {"vllm", "torch", "transformers"}


@pytest.mark.parametrize("folder", ["losses", "metrics"])
def test_losses_and_metrics_are_mathematics(folder: str) -> None:
    allowed = NUMERIC | set(sys.stdlib_module_names) | {"specalign"}
    if folder == "metrics":
        allowed |= {"rouge_score"}
    foreign = {name.split(".")[0] for path in modules(folder) for name in imports(path)} - allowed
    assert not foreign
    assert not imports_from(folder, "models", "data", "decoding", "config")


@pytest.mark.parametrize("command", ["training", "benchmarks"])
def test_help_imports_nothing_heavy(command: str) -> None:
    code = (
        "import sys\n"
        f"from specalign.{command}.cli import entry\n"
        "sys.argv = ['x', '--help']\n"
        "try:\n    entry()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "[]"


def test_everything_is_printed_by_the_module_that_makes_it_plain() -> None:
    """Elsewhere a name with an escape in it would reach the terminal."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.name not in ("terminal.py", "errors.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("print", "Console")
    ]
    assert not found


def test_every_file_is_short_enough_to_be_read_in_one_go() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in modules(".")}
    assert not {str(path): n for path, n in lengths.items() if n >= MOST_LINES}


def test_no_import_runs_in_a_circle() -> None:
    """Of the imports at the tops of modules: whoever reads one file need not have read another that needs it."""
    files = {
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")
    }
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {name: _top_imports(path) & names.keys() - {name, *_packages(name)} for name, path in names.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


def _top_imports(path: Path) -> set[str]:
    """Modules that a file imports when it is imported: not in functions, not for types alone."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _packages(name: str) -> list[str]:
    """The packages that a module lies in: importing it imports them first, which is no circle."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def test_no_kind_of_drafter_is_told_by_its_class_outside_the_engine() -> None:
    """Drafters say of themselves what they are, so that a new kind is a matter of ``decoding`` alone."""
    kinds = r"isinstance\([^)]*(Drafter|Lookup|Hybrid)\b"
    found = [path for path in PACKAGE.rglob("*.py") if re.search(kinds, path.read_text(encoding="utf-8"))]
    assert not [path for path in found if path.parent != PACKAGE / "decoding"]
