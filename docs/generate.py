"""Writes README.md and the pages of this folder from docs/templates/: figures come from the records, none is typed.

    python docs/generate.py           # write
    python docs/generate.py --check   # compare with what lies there; exit status 1 where a page is not in step

A template, NAME.md.j2, is Markdown with Jinja's `{{ ... }}` where a figure belongs:

    {{ table("seeds", "table2")["base"].val | pm }}             16.9 ± 1.8   mIoU on val, mean and spread over seeds
    {{ (t["+ soft erase"].val - t["base"].val) | signed_pm }}   +19.5 ± 2.5  paired by seed
    {{ line("dtd", start_block=0, classes=2).forwards | n }}    8.0          of a benchmark: the last line that fits
    {{ noted("set-up, disk") | n }}                             6.5          from benchmarks/results/noted.csv
    {{ paper("Table 2", "base") | n }}                          59.5         from docs/paper.csv

A number that is typed in a template all the same must be a name or a constant of the method, listed in
docs/constants.csv with its source; `typed` finds the others, and the command fails for them.
"""

import argparse
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
import records  # noqa: E402  (a folder of scripts, not a package)

OPEN, CLOSE = "\ue000", "\ue001"  # around what comes from a record, while a page is checked
NOTE = "<!-- Made by `python docs/generate.py` from docs/templates/{name}.j2: change that file, not this one. -->\n"


# what a template gets: figures and words that know where they come from


class Words(str):
    "A piece of text that comes from a record."


@dataclass(frozen=True)
class Figure:
    "A recorded figure: one value, or one a seed. Differences are taken seed by seed."

    values: tuple[float, ...]

    def _with(self, other: "Figure | float", f: Callable[[float, float], float]) -> "Figure":
        theirs = other.values if isinstance(other, Figure) else (other,) * len(self.values)
        if len(theirs) != len(self.values):
            raise ValueError(f"{len(self.values)} values and {len(theirs)} cannot be paired")
        return Figure(tuple(f(a, b) for a, b in zip(self.values, theirs)))

    def __sub__(self, other: "Figure | float") -> "Figure":
        return self._with(other, lambda a, b: a - b)

    def __add__(self, other: "Figure | float") -> "Figure":
        return self._with(other, lambda a, b: a + b)

    def __truediv__(self, other: "Figure | float") -> "Figure":
        return self._with(other, lambda a, b: a / b)

    def __mul__(self, other: float) -> "Figure":
        return self._with(other, lambda a, b: a * b)

    def __neg__(self) -> "Figure":
        return self * -1

    def at(self, i: int) -> "Figure":  # one seed's
        return Figure((self.values[i],))

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> "Figure | None":  # sample standard deviation; None for one value
        return Figure((statistics.stdev(self.values),)) if len(self.values) > 1 else None

    @property
    def verdict(self) -> str:  # of a claim that the figure is above zero
        return "holds" if min(self.values) > 0 else "fails" if max(self.values) <= 0 else "open"


def _figure(value: Any) -> Any:
    "A recorded value as a template may use it."
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return Figure((float(value),))
    if isinstance(value, str):
        return Words(value)
    if isinstance(value, Mapping):
        return {name: _figure(part) for name, part in value.items()}
    return [_figure(part) for part in value]


class Row:
    "A row of a table."

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self.name, self.note, self.paper = Words(row["name"]), Words(row["note"]), _figure(row["paper"])

    def __getitem__(self, path: str) -> Figure:  # such as "labels/rule/epom_share"
        return Figure(tuple(records.flat(metrics)[path] for metrics in self._row["metrics"]))

    def _maybe(self, path: str) -> Figure | None:
        stage = path.partition("/")[0]
        return self[path] if self._row["metrics"] and all(stage in m for m in self._row["metrics"]) else None

    @property
    def val(self) -> Figure | None:  # mIoU of the network on val, percent; None where none was trained
        return self._maybe("evaluation/miou")

    @property
    def labels(self) -> Figure | None:  # mIoU of the labels on train, percent, where they are not ignored
        found = self._maybe("labels/pseudo_label_miou")
        return _figure(self._row["pseudo_label_miou"]) if found is None else found

    @property
    def maps(self) -> Figure | None:  # mIoU of the bare maps on train, percent, at their best background
        return self._maybe("heatmap/miou")

    def measure(self, name: str) -> Figure:
        return Figure(tuple(self._row["measures"][name]))

    def seconds(self, stage: str) -> Figure:
        return Figure(tuple(sum(s["seconds"] for s in seed if s["stage"] == stage) for seed in self._row["stages"]))

    @property
    def over_trivial(
        self,
    ) -> dict[str, Figure]:  # points of the network over that of the trivial labels: miou, low, high
        return _figure(self._row["over_trivial"])

    @property
    def folders(self) -> dict[str, dict]:  # of its stages
        return {s["folder"]: s for seed in self._row["stages"] for s in seed}

    def shares(self, what: str, classes: Sequence[int], truth: "Row") -> dict[str, Figure]:
        "What labels or network make of the pixels of some classes, percent: right, other, background, ignored."

        def counts(row: "Row") -> list[list[int]]:
            m = row._row["metrics"][0]
            return (m["evaluation"] if what == "network" else m["labels"]["pseudo_label"])["confusion"]

        own, all_pixels = counts(self), sum(sum(counts(truth)[c]) for c in classes)
        right, background = sum(own[c][c] for c in classes), sum(own[c][0] for c in classes)
        named = sum(sum(own[c]) for c in classes)
        parts = dict(right=right, other=named - right - background, background=background, ignored=all_pixels - named)
        return {name: Figure((100 * n / all_pixels,)) for name, n in parts.items()}

    def strict(self, classes: Sequence[int], truth: "Row") -> Figure:
        "mIoU of the labels over some classes, percent, with ignored pixels taken for background."

        def counts(row: "Row") -> list[list[int]]:
            return row._row["metrics"][0]["labels"]["pseudo_label"]["confusion"]

        own = [list(row) for row in counts(self)]
        for mine, every_pixel in zip(own, counts(truth)):
            mine[0] += sum(every_pixel) - sum(mine)
        columns = [sum(row[c] for row in own) for c in range(len(own))]
        return Figure((100 * statistics.fmean(own[c][c] / (sum(own[c]) + columns[c] - own[c][c]) for c in classes),))


class Table:
    "A table of a run."

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.rows = [Row(row) for row in table["rows"]]
        self.device, self.date = Words(table["device"]), Words(table["date"])
        self.versions = {name: Words(version) for name, version in table["versions"].items()}

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)

    @property
    def peak(self) -> Figure:  # GiB, the most that any stage took
        return Figure((max(s["peak_gib"] for row in self.rows for s in row.folders.values()),))


def table(run: str, name: str) -> Table:
    return Table(records.load(run)[name])


def other(run: str, name: str) -> Any:
    "Another result of a run, with its figures."
    return _figure(records.load(run)[name])


def lines(name: str, /, **fits: Any) -> list[dict]:
    "The lines of a benchmark whose columns have these values."
    found = [line for line in records.load_rows(name) if all(line.get(k) == v for k, v in fits.items())]
    if not found:
        raise LookupError(f"{name}.csv has no line with {fits}")
    return [_figure(line) for line in found]


def line(name: str, /, **fits: Any) -> dict:
    "The last of them."
    return lines(name, **fits)[-1]


def latest(name: str, *columns: str) -> list[dict]:
    "Of a benchmark's lines that agree in some columns, the last; in the order of their first."
    return list({tuple(str(row.get(c)) for c in columns): row for row in lines(name)}.values())


def every(rows: Sequence[Mapping[str, Any]], *paths: str) -> Figure:
    "The figures at some paths of several lines, for a range over them."
    return Figure(tuple(v for row in rows for path in paths for v in records.flat(row)[path].values))


def noted(name: str) -> Figure:
    "A figure that a command printed."
    return line("noted", name=name)["value"]


def paper(where: str, what: str) -> Figure:
    "A figure of the paper, or of another publication."
    found = [
        Figure((float(r["value"]),))
        for r in records.read_csv(HERE / "paper.csv")
        if (r["where"], r["what"]) == (where, what)
    ]
    if len(found) != 1:
        raise LookupError(f"paper.csv has {len(found)} lines for {where!r}, {what!r}")
    return found[0]


# how a figure is written


def _format(form: Callable[..., str]) -> Callable[..., Words]:
    "A filter: nothing for None, and no figure that was typed."

    def write(figure: Figure | None, *args) -> Words:
        if not isinstance(figure, Figure | None):
            raise TypeError(f"{figure!r} does not come from a record")
        return Words("" if figure is None else form(figure, *args))

    return write


def _signed(figure: Figure, digits: int = 1) -> str:
    return f"{figure.mean:+.{digits}f}"


def _pm(figure: Figure, digits: int = 1) -> str:
    return f"{figure.mean:.{digits}f}" + (f" ± {figure.spread.mean:.{digits}f}" if figure.spread else "")


def _significant(figure: Figure) -> str:
    return re.sub(r"e([+-])0*", r"e\1", f"{figure.mean:.2g}")


FILTERS = {
    "n": lambda f, digits=1: f"{f.mean:,.{digits}f}",  # one figure, or the mean
    "pm": _pm,  # mean ± spread
    "signed": _signed,
    "signed_pm": lambda f, digits=1: ("+" if f.mean >= 0 else "") + _pm(f, digits),
    "span": lambda f, digits=0: f"{min(f.values):.{digits}f} to {max(f.values):.{digits}f}",
    "low": lambda f, digits=1: f"{min(f.values):.{digits}f}",
    "high": lambda f, digits=1: f"{max(f.values):.{digits}f}",
    "g": _significant,  # two digits, however small: 1.6e-6
    "minutes": lambda f: f"{int(f.mean // 60)} min {round(f.mean % 60)} s",  # of seconds
}


# pages


def pages() -> dict[str, Path]:
    "The pages by name, and where each lies."
    names = sorted(p.stem for p in (HERE / "templates").glob("*.md.j2"))
    return {name: ROOT / name if name == "README.md" else HERE / name for name in names}


def environment(marked: bool = False) -> Environment:
    "What templates are written in; marked: with signs around all that comes from a record."

    def finish(value: Any) -> Any:
        if isinstance(value, Words):
            return f"{OPEN}{value}{CLOSE}" if marked and value else value
        if not isinstance(value, str):
            raise TypeError(f"{value!r} stands in a page as it is; give it a form, such as `| n`")
        return value

    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        finalize=finish,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.globals |= dict(
        table=table, other=other, lines=lines, latest=latest, line=line, every=every, noted=noted, paper=paper
    )
    env.filters |= {key: _format(form) for key, form in FILTERS.items()}
    return env


def render(name: str, marked: bool = False) -> str:
    "A page."
    return NOTE.format(name=name) + environment(marked).get_template(f"{name}.j2").render()


def constants() -> list[str]:
    "The phrases with a number that a page may hold, the longest first."
    return sorted((line["phrase"] for line in records.read_csv(HERE / "constants.csv")), key=len, reverse=True)


CODE = [r"<!--.*?-->", r"```.*?```", r"(?<=\])\([^)\s]*\)", r"https?://\S+"]  # and the targets of links
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)\d[\d.,]*")  # not the end of a name, such as ResNet-101 or V3


def typed(text: str, known: Sequence[str] | None = None) -> list[str]:
    "Of a marked page: numbers in prose and tables that come from no record and are no constant, with their lines."
    for pattern in CODE:
        text = re.sub(pattern, lambda m: "\n" * m[0].count("\n"), text, flags=re.S)
    text = re.sub(f"{OPEN}.*?{CLOSE}", "recorded", text, flags=re.S)
    for phrase in constants() if known is None else known:
        text = re.sub(rf"(?<![\w.,]){re.escape(phrase)}(?!\w|[.,]\d)", "known", text)
    text = re.sub(r"`[^`\n]*[A-Za-z][^`\n]*`", "code", text)
    return [
        f"{n}: {', '.join(found)} in {' '.join(line.split())}"
        for n, line in enumerate(text.split("\n"), 1)
        if (found := NUMBER.findall(line))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args, wrong = parser.parse_args(argv), 0
    for name, page in pages().items():
        text, where = render(name), page.relative_to(ROOT)
        for place in typed(render(name, marked=True)):
            wrong += 1
            print(f"{where}: a number that no record holds, line {place}")
        if args.check and (not page.is_file() or page.read_text(encoding="utf-8") != text):
            wrong += 1
            print(f"{where} is not in step with its template and the records: run python docs/generate.py")
        elif not args.check:
            page.write_text(text, encoding="utf-8")
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
