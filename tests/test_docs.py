"""Pages and examples: what they cite exists, their commands parse, their code runs, and all records fit the schema."""

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import smoothlab

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
RECORDS = sorted((ROOT / "benchmarks" / "results").rglob("*.jsonl"))
PAPER = "New Hybrid Fine-Tuning Paradigm for LLMs: Algorithm Design and Convergence Analysis Framework"


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, *languages: str) -> list[str]:
    """The page's fenced blocks of these languages ("" for a fence without one)."""
    fences = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in fences if language in languages]


def commands(path: Path) -> list[str]:
    """Lines of the page's blocks that call smoothlab."""
    lines = [line for block in blocks(path, "", "sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("smoothlab ")]


def slug(heading: str) -> str:
    """The anchor that mkdocs makes of a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def test_sections_of_theory_that_the_code_cites_exist() -> None:
    headings = re.findall(r"^#+ ([A-F](?:\.\d)?)\.? ", (DOCS / "theory.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = set()
    for folder in ("smoothlab", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            cited |= set(re.findall(r"theory\.md[ ,(]+([A-F](?:\.\d)?)\b", path.read_text(encoding="utf-8")))
    assert cited >= {"A", "B", "B.2", "B.5", "D", "E"}
    assert cited <= set(headings)


def test_the_claims_page_has_each_claim_with_its_verdict() -> None:
    table = (DOCS / "claims.md").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/audit.jsonl").read_text().splitlines()]
    rows = [line for line in lines if line["kind"] == "row"]
    for row in rows:
        assert f"| {row['claim']} | {row['place']} | {row['verdict']} |" in table
    assert table.count("\n| ") == len(rows) + 2


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        page = (path.parent / file).resolve() if file else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


def test_the_reference_has_every_public_name() -> None:
    listed = re.findall(r"^::: smoothlab\.(\w+)", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(set(smoothlab.__all__) - {"__version__"})


def test_the_paper_is_cited_by_title_authors_and_number() -> None:
    for path in (ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "smoothlab" / "__init__.py"):
        text = " ".join(path.read_text(encoding="utf-8").split())
        for words in (PAPER, "Shaocong", "Ma", "Peiran", "Yu", "Heng", "Huang", "2604.09940"):
            assert words in text, (path, words)


@pytest.mark.parametrize("path", [path for path in TEXTS if commands(path)], ids=named)
def test_commands_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from smoothlab.commands import parse

    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "benchmarks/results/fig1b_micro_sst2.jsonl", tmp_path / "out" / "run.jsonl")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / "my.jsonl").write_text('{"sentence": "fine", "label": 0}\n')
    monkeypatch.chdir(tmp_path)
    for command in commands(path):
        assert callable(parse(shlex.split(command, comments=True)[1:])), command


def test_old_flags_are_refused_with_the_name_that_the_page_gives() -> None:
    from smoothlab.commands import parse
    from smoothlab.errors import BadInput

    rows = re.findall(r"^\| (\w+) \| `(--[^`]+)` \| `(--[^`]+)`", (DOCS / "migration.md").read_text(), re.MULTILINE)
    assert len(rows) == 16
    for command, old, new in rows:
        with pytest.raises(BadInput, match=f"^{old} of `smoothlab {command}` is {new}"):
            parse([command, *old.split(), "1"])


def test_modules_and_tables_that_pages_name_exist() -> None:
    names = set(
        re.findall(r"`(smoothlab[\w.]+)` \|$", (DOCS / "migration.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    names |= set(
        re.findall(r"`(smoothlab\.[\w.]+\.[\w]+)`", (DOCS / "howto" / "extend.md").read_text(encoding="utf-8"))
    )
    assert len(names) > 25
    for name in names:
        home, _, attribute = name.rpartition(".")
        assert importlib.util.find_spec(name) if attribute.islower() else hasattr(import_module(home), attribute), name


@pytest.mark.check
@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "python")], ids=named)
def test_code_of_pages_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(ROOT / "benchmarks/results/fig1b_micro_sst2.jsonl", tmp_path / "out" / "run.jsonl")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"SCHEMA": DOCS / "records.schema.json"}
    for number, block in enumerate(blocks(path, "python")):
        exec(compile(block, f"{named(path)}, block {number + 1}", "exec"), namespace)


@pytest.mark.check
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=named)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 60
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = {
        "accelerate_hybrid.py": r"steps 21 to 30: mean loss 0\.\d+",
        "claim.py": r"cosh-bound: holds once corrected",
        "curvature.py": r"llama step 5 layer\.1: \|\|H\|\|_F = [\d.]+ \([\d.]+ to [\d.]+\)",
        "estimator.py": r"fourth order: E \|\|ghat\|\|\^2/\|\|g\|\|\^2 = (4\.[6-9]|5\.[0-4])\d* ",
        "hybrid.py": r"steps 21 to 30: mean loss 0\.\d+",
        "verify.py": r"restored_fp32  wrong: \d+\.\d % of the weights are changed",
    }
    assert re.search(expected[path.name], done.stdout), done.stdout


@pytest.mark.check
@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=named)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "committed without outputs"
            exec(compile("".join(cell["source"]), f"{named(path)}, {cell['id']}", "exec"), namespace)
    assert set(namespace["spectral"].index) == {"base", "peft"}


def misfits(path: Path) -> list[str]:
    """What docs/records.schema.json says against the lines of a record file."""
    from jsonschema import Draft202012Validator as Validator

    schema = json.loads((DOCS / "records.schema.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    any_line = Validator(schema)
    any_row = Validator({"$ref": f"#/$defs/rows/{lines[0]['experiment']}", "$defs": schema["$defs"]})
    found = []
    for number, line in enumerate(lines, 1):
        errors = [*any_line.iter_errors(line), *(any_row.iter_errors(line) if line["kind"] == "row" else ())]
        found += [f"{path.name}:{number}: {error.message}" for error in errors]
    return found


@pytest.mark.check
def test_all_records_fit_the_schema() -> None:
    assert len(RECORDS) >= 79
    for path in RECORDS:
        assert not misfits(path)


@pytest.mark.check
@pytest.mark.parametrize(
    "command",
    [
        "finetune --measure peft --points 2 --steps 1 --train 8 --dev 2 --test 2 --batch 4 --probes 2 --precision 0.5",
        "finetune --measure base --points 2 --steps 1 --train 8 --dev 2 --test 2 --batch 4 --precision 0.5 trace=0.5 "
        "--block-rows layer --gauss-newton",
        "smoothness --measure peft --protocol both --points 2 --steps 1 --batch 4 --probes 2 --precision 0.5",
        "quadratic --ratios 2 --hybrid-ratios 2 --dims 3 --hybrid-dims 3 --replicas 30 --steps 10 --max-steps 1000",
        "estimators --parts bias variance averages curve --functions cubic --draws 100 --dim 4 --dims 4 --qs 2 "
        "--mus 0.1 0.2 --precisions float64 --curve-mus 1e-3 1e-2 --curve-draws 30",
        "rates --eps 1 --ns 2 --dims 2 --deltas 0.5 --ratios 1 --sigmas 1 --families quadratic --orders reshuffle "
        "--oracles two-sided --instances small --fit-eps 0.4 0.3 --fit-ns 2 4 --fit-dims 5 10 --fit-deltas 0.5 0.3 "
        "--speedup-ratios 10 --speedup-dims 10 --shuffle-ns 2 --shuffle-scales 1 --shuffle-dims 1 --shuffle-qs 2 "
        "--replicas 30 --max-steps 5000",
        "fit benchmarks/results/fig1b_micro_sst2.jsonl --block peft --resamples 99",
        "audit eq-2",
        "verify examples/verify.py:mezo --probes along sign",
        "advise --method fo-peft --batch 2 --train 8 --budget 8 --try-steps 1 --by try",
    ],
    ids=lambda command: command.partition(" ")[0],
)
def test_new_records_fit_the_schema(command: str, tmp_path: Path) -> None:
    from smoothlab.__main__ import main

    out = tmp_path / "records.jsonl"
    assert main([*command.split(), "--out", str(out)]) == 0
    assert not misfits(out)


@pytest.mark.check
def test_the_schema_refuses_wrong_lines() -> None:
    from jsonschema import Draft202012Validator as Validator

    schema = json.loads((DOCS / "records.schema.json").read_text(encoding="utf-8"))
    row = Validator({"$ref": "#/$defs/rows/finetune", "$defs": schema["$defs"]})
    good: dict[str, Any] = {
        "kind": "row",
        "part": "dev",
        "step": 0,
        "trial": 0,
        "eta_x": 1e-4,
        "eta_y": None,
        "mu": 1e-3,
    }
    assert row.is_valid(good)
    for change in ({"step": "0"}, {"unknown": 1}, {"trial": 0.5}):
        assert not row.is_valid(good | change)
    assert not row.is_valid({name: value for name, value in good.items() if name != "part"})
    assert not Validator(schema).is_valid({"kind": "end"})


@pytest.mark.check
def test_pages_build_without_warnings_and_list_the_tables(tmp_path: Path) -> None:
    from smoothlab.llm.peft_methods import MEASURABLE
    from smoothlab.llm.tasks import TASKS
    from smoothlab.objectives import OBJECTIVES
    from smoothlab.zeroth.names import DISTRIBUTIONS, VARIANTS

    pytest.importorskip("mkdocs", reason="pip install '.[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    listed = (tmp_path / "howto" / "extend.html").read_text(encoding="utf-8")
    for names in (DISTRIBUTIONS, VARIANTS, MEASURABLE, TASKS, OBJECTIVES):
        assert all(f"<code>{name}</code>" in listed for name in names)
    theory = (tmp_path / "theory.html").read_text(encoding="utf-8")
    assert theory.count("<math") > 200 and "arithmatex" not in theory
    assert "merror" not in theory and "<mi>&#x02AAF;</mi>" not in theory, "relations are operators, with space around"
    verify = (tmp_path / "howto" / "verify.html").read_text(encoding="utf-8")
    assert "E &lt;update, g&gt; with 0" in verify, "text in angle brackets is no tag"
    assert '<span class="whole">--compute</span>' in (tmp_path / "howto" / "memory.html").read_text(encoding="utf-8")
    for page in tmp_path.rglob("*.html"):
        broken = {target for target in local_links(page) if not (page.parent / target).is_file()}
        assert not broken or page.name == "404.html", (page.name, broken)  # that one is written for a server


def local_links(page: Path) -> set[str]:
    """Files that a built page links to or shows, relative to its folder."""
    targets = re.findall(r'(?:href|src)="([^"#]+)', page.read_text(encoding="utf-8"))
    return {target for target in targets if not re.match(r"[a-z]+:", target)}
