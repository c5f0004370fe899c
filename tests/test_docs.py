"README and the pages of docs/ are in step with the records, and hold no number that nothing stands behind."

import configparser
import csv
import json
import re
import shutil
import statistics
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402  (a script, not a package)

PAGES = generate.pages()


@pytest.mark.parametrize("name", PAGES)
def test_page_is_in_step_with_its_template_and_the_records(name):
    assert PAGES[name].read_text(encoding="utf-8") == generate.render(name), "run python docs/generate.py"


@pytest.mark.parametrize("name", PAGES)
def test_every_number_is_recorded_or_a_listed_constant(name):
    assert generate.typed(generate.render(name, marked=True)) == []


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_every_page_has_a_template(page):
    assert page in PAGES.values()


BOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


@pytest.mark.parametrize("book", BOOKS, ids=lambda p: p.stem)
def test_no_notebook_types_a_recorded_result(book):
    "A mean with its spread comes from the records, which are made anew; prose links to the page that shows them."
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert re.findall(r".*\d *(?:±|\\pm) *\d.*", prose) == []


# that these tests can fail


@pytest.mark.parametrize(
    "sentence",
    [
        "It reaches 73.2.",
        "It is 2.5x faster.",
        "| base | 17.3 |",
        "It takes 30s.",
        "It reaches `73.2`.",
        "Lead: +1.5 points.",
        "about 1,400 pictures",
        "3.5 points on the base",
    ],
)
def test_a_typed_number_is_found(sentence):
    found = generate.typed(generate.render("README.md", marked=True) + f"\n{sentence}\n")
    assert len(found) == 1 and found[0].split()[1].strip(",.") in sentence


@pytest.mark.parametrize(
    "text",
    ["ResNet-101, DeepLab-V3+ and VGG-16", "`dtd_maps(0.5)`", "[a page](nbs/method/04_heatmaps.ipynb)", "VOC 2012"],
)
def test_names_code_and_constants_are_not_numbers(text):
    assert generate.typed(text) == []


def test_a_constant_holds_for_its_whole_phrase_alone():
    assert generate.typed("least score of 0.3") == [] != generate.typed("least score of 0.31")
    assert generate.typed("Table 2") == [] != generate.typed("Table 25")


@pytest.mark.parametrize("source", ["{{ 70.5 }}", "{{ 70.5 | n }}", "{{ '70.5' | n }}", "{{ noted('make test') }}"])
def test_a_template_cannot_pass_a_typed_number_off_as_recorded(source):
    with pytest.raises(TypeError):
        generate.environment(marked=True).from_string(source).render()


def test_a_typed_text_is_not_marked_as_recorded():
    assert generate.typed(generate.environment(marked=True).from_string("{{ '70.5' }}").render()) == ["1: 70.5 in 70.5"]


def test_an_unknown_record_is_refused():
    for source in ("{{ paper('Table 9', 'base') | n }}", "{{ line('dtd', classes=9).forwards | n }}"):
        with pytest.raises(LookupError):
            generate.environment().from_string(source).render()
    with pytest.raises(TypeError, match="does not come from a record"):
        generate.environment().from_string("{{ line('dtd').speed | n }}").render()


def test_another_record_makes_another_page(tmp_path, monkeypatch):
    "One changed measurement: README is no longer in step, and the command says so."
    shutil.copytree(generate.records.RESULTS, tmp_path / "results")
    path = tmp_path / "results/seeds/measures.csv"
    lines = path.read_text().splitlines()
    i = next(i for i, line in enumerate(lines) if line.startswith("table2,base,0,evaluation,miou,"))
    lines[i] = lines[i].rpartition(",")[0] + ",55.5"
    path.write_text("\n".join(lines) + "\n")
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate.records, "load", partial(generate.records.load, results=tmp_path / "results"))
    before, after = PAGES["README.md"].read_text().splitlines(), generate.render("README.md").splitlines()
    assert [line.split("|")[1].strip() for line, new in zip(before, after, strict=True) if line != new] == ["base"]
    assert generate.main(["--check"]) == 1


def test_every_constant_is_needed():
    pages = [generate.render(name, marked=True) for name in PAGES]
    known = generate.constants()
    assert len(set(known)) == len(known)
    for phrase in known:
        rest = [other for other in known if other != phrase]
        assert any(generate.typed(page, rest) for page in pages), f"no page needs {phrase!r}"


# the figures themselves, read another way


def measured(run, table, stage, measure):
    "By row, the values of all seeds: straight from the file."
    found = {}
    with (ROOT / "benchmarks/results" / run / "measures.csv").open(newline="") as handle:
        for line in csv.DictReader(handle):
            if (line["table"], line["stage"], line["measure"]) == (table, stage, measure):
                found.setdefault(line["row"], []).append(float(line["value"]))
    return found


def cells(page, heading):
    "The first table under a heading: row name -> its other cells."
    text = page.read_text().partition(heading)[2]
    table = re.search(r"(?:^\|.*\n)+", text, re.M)[0].splitlines()[2:]
    return {row[0]: row[1:] for row in ([c.strip() for c in line.strip("|\n ").split("|")] for line in table)}


def test_table_2_of_the_readme_is_what_was_measured():
    one, three = (measured(run, "table2", "evaluation", "miou") for run in ("toy", "seeds"))
    table = cells(ROOT / "README.md", "## Table 2")
    assert len(table) == 8
    for name, (first, mean, spread, *_) in table.items():
        assert first == f"{one[name][0]:.1f}"
        assert (mean, spread) == (f"{statistics.mean(three[name]):.1f}", f"{statistics.stdev(three[name]):.1f}")


def test_claims_are_differences_by_seed():
    three = measured("seeds", "table2", "evaluation", "miou")
    gaps = [a - b for a, b in zip(three["+ Sal (DRS) + EPOM*"], three["+ Sal (DRS)"])]
    said = cells(ROOT / "docs/results.md", "## What holds")["Table 2: EPOM adds, DRS's saliency"]
    assert said[1:] == [f"{statistics.mean(gaps):+.1f} ± {statistics.stdev(gaps):.1f}", "**open**"]


# the front door


def test_readme_is_one_page():
    text = (ROOT / "README.md").read_text()
    assert len(re.findall(r"\S+", re.sub(r"```.*?```", "", text, flags=re.S))) <= 900
    assert len(re.findall(r"\d+(?:\.\d+)?", text)) <= 150


def test_citation_is_valid():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and cited["type"] == "software"
    assert {"message", "title", "authors"} <= cited.keys()
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini")
    assert (cited["version"], cited["license"]) == (settings["DEFAULT"]["version"], settings["DEFAULT"]["license"])
    paper = cited["preferred-citation"]
    assert [a["family-names"] for a in paper["authors"]] == ["Liu", "Xie", "Wang", "Wang", "Li", "Luo"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
