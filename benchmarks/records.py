"""The records of what was measured, as comma-separated files: one row a measurement.

    python benchmarks/records.py runs/all --name toy        # a run of `wegformer reproduce`: benchmarks/results/toy/
    python benchmarks/records.py runs/dtd.json --name dtd   # a benchmark's file: appended to benchmarks/results/dtd.csv

A run's folder keeps what `wegformer reproduce` wrote, without its repetitions; README.md there says what each column
means:

    tables.csv    a table: where, when and with which versions it was made
    rows.csv      a row of a table: its status, the paper's figure, what a reader should know
    measures.csv  a measurement of a row, for each seed
    classes.csv   IoU of a class, and its row of the confusion matrix in pixels
    stages.csv    a stage that a row took: seconds and memory
    config.csv    the settings that most rows share, once; then where a row differs
    others.csv    what else lies in the run's folder: its value by its path

`load` gives back what was written, number by number; `record` makes sure of it before it ends.
"""

import argparse
import csv
import json
import re
import subprocess
from collections import Counter
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

RESULTS = Path(__file__).parent / "results"
FILES = {
    "tables": ["table", "notebook", "title", "preset", "device", "versions", "date", "commit"],
    "rows": ["table", "row", "seeds", "status", "paper", "note", "error", "config"],
    "measures": ["table", "row", "seed", "stage", "measure", "value"],
    "classes": [
        "table",
        "row",
        "seed",
        "stage",
        "measure",
        "class",
        "iou",
    ],  # then a column for each class: pixels that were taken for it
    "stages": ["table", "row", "seed", "stage", "folder", "seconds", "peak_gib"],
    "config": ["table", "row", "setting", "value"],
    "others": ["result", "measure", "value"],
}
BASE = ("", "")  # table and row of a setting that most rows share
SUMMARY = ("miou", "std", "pseudo_label_miou")  # of a row, from its seeds


# a cell, and a file of them


def write_value(value: Any) -> str:
    "A cell: texts as they are, all else as JSON (a value that is not defined is `null`)."
    if isinstance(value, str):
        return json.dumps(value) if read_value(value) != value else value
    return json.dumps(value)


def read_value(cell: str) -> Any:
    "The value of a cell."
    try:
        return json.loads(cell)
    except ValueError:
        return cell


def read_csv(path: Path) -> list[dict[str, str]]:
    "The lines of a file; none where there is no file."
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def write_csv(path: Path, header: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> None:
    "Lines under a header; a column that a line lacks stays empty. Without lines there is no file."
    lines = list(lines)
    if not lines:
        return path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, header, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def flat(value: Any, path: str = "") -> dict[str, Any]:  # path with "/" -> value
    "The leaves of nested mappings and lists, by their path."
    pairs = list(value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ())
    if not pairs:  # a leaf, or nothing below
        return {path: value}
    return {
        key: leaf for name, part in pairs for key, leaf in flat(part, f"{path}/{name}" if path else str(name)).items()
    }


def nested(leaves: Mapping[str, Any]) -> Any:
    "What `flat` took apart; a mapping whose names are 0, 1, 2 ... is a list."
    if list(leaves) == [""]:
        return leaves[""]
    made: dict[str, Any] = {}
    for path, leaf in leaves.items():
        _put(made, path, leaf)
    return _lists(made)


# the versions that several tables share


def _version_id(results: Path, versions: Mapping[str, str]) -> str:
    "The line of versions.csv that holds these; it is added where there is none."
    lines = read_csv(results / "versions.csv")
    for line in lines:
        if {k: v for k, v in line.items() if k != "id" and v} == versions:
            return line["id"]
    lines.append({"id": f"v{len(lines) + 1}", **versions})
    write_csv(results / "versions.csv", list(dict.fromkeys(key for line in lines for key in line)), lines)
    return lines[-1]["id"]


def read_versions(results: Path, number: str) -> dict[str, str]:
    "A line of versions.csv."
    return next(
        {k: v for k, v in line.items() if k != "id" and v}
        for line in read_csv(results / "versions.csv")
        if line["id"] == number
    )


# a table of `wegformer reproduce`, as lines of the files


def summary(row: Mapping[str, Any]) -> dict[str, float | None]:
    "What a row says of its seeds together, as wegformer.experiment computes it."
    miou = [m["evaluation"]["miou"] for m in row["metrics"] if "evaluation" in m]
    quality = [m["labels"]["pseudo_label_miou"] for m in row["metrics"] if "labels" in m]
    return dict(
        miou=float(np.mean(miou)) if miou else None,
        std=float(np.std(miou, ddof=1)) if len(miou) > 1 else None,
        pseudo_label_miou=float(np.mean(quality)) if quality and None not in quality else None,
    )


def _class_lines(
    part: Mapping[str, Any], path: str = ""
) -> Iterable[tuple[str, dict, dict]]:  # path, a line, what it stands for
    "A line for each class of every `iou` in a stage's metrics, with its row of the confusion matrix beside it."
    if "iou" in part:
        counts = part.get("confusion") or [[]] * len(part["iou"])
        for (name, iou), row in zip(part["iou"].items(), counts, strict=True):
            yield path, {"class": name, "iou": write_value(iou), **dict(zip(part["iou"], row))}
    for name, below in part.items():
        if isinstance(below, Mapping) and name != "iou":
            yield from _class_lines(below, f"{path}/{name}" if path else name)


def _scalars(part: Mapping[str, Any]) -> dict:
    "A stage's metrics without what _class_lines takes."
    return {
        name: _scalars(below) if isinstance(below, Mapping) else below
        for name, below in part.items()
        if name not in ("iou", "confusion")
    }


def _row_lines(here: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, list[dict]]:
    "A row as lines of measures.csv, classes.csv and stages.csv; `here` names table and row."
    lines = dict(measures=[], classes=[], stages=[])

    def measure(seed, stage, values):
        lines["measures"] += [
            {**here, "seed": seed, "stage": stage, "measure": name, "value": write_value(v)}
            for name, v in values.items()
        ]

    for seed, metrics in zip(row["seeds"], row["metrics"]):
        for stage, part in metrics.items():
            measure(seed, stage, {k: v for k, v in flat(_scalars(part)).items() if v != {}})
            lines["classes"] += [
                {**here, "seed": seed, "stage": stage, "measure": path, **line} for path, line in _class_lines(part)
            ]
    for name, values in row["measures"].items():
        for seed, value in zip(row["seeds"], values, strict=True):
            measure(seed, "", {name: value})
    for seed, stages in zip(row["seeds"], row["stages"]):
        lines["stages"] += [{**here, "seed": seed, **stage} for stage in stages]
    known = summary(row)  # is not written down again
    own = {k: row[k] for k in SUMMARY if row[k] != known[k]}
    beside = {
        "name",
        "seeds",
        "paper",
        "status",
        "error",
        "note",
        "config",
        "measures",
        "stages",
        "metrics",
        "traceback",
        *SUMMARY,
    }
    measure("", "", flat(own | {k: v for k, v in row.items() if k not in beside}) if own or set(row) - beside else {})
    return lines


def _base_config(tables: Mapping[str, Mapping]) -> dict[str, Any]:
    "Of every setting the value that most rows have."
    configs = [row["config"] for table in tables.values() for row in table.get("rows", []) if row["config"]]
    longest = max(map(len, configs), default=0)
    whole = [config for config in configs if len(config) == longest]

    def most(setting):
        return json.loads(Counter(json.dumps(config.get(setting)) for config in whole).most_common(1)[0][0])

    return {setting: most(setting) for setting in (whole[0] if whole else ())}


def _config_lines(here: Mapping[str, str], row: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, list[dict]]:
    "How a row's configuration is written (from the base, by itself, not at all), and the lines of config.csv."
    config = row["config"]
    if config is None:
        return "none", []
    kind = "base" if config.keys() == base.keys() else "own"
    return kind, [
        {**here, "setting": k, "value": write_value(v)} for k, v in config.items() if kind == "own" or v != base[k]
    ]


def _keys(rows: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    "The rows' names; a name's second row (two sweeps that share a value) is called NAME #2."
    seen: Counter[str] = Counter()
    for row in rows:
        seen[row["name"]] += 1
        yield row["name"] + (f" #{seen[row['name']]}" if seen[row["name"]] > 1 else "")


def _as_lines(tables: Mapping[str, Mapping], others: Mapping[str, Any], results: Path) -> dict[str, list[dict]]:
    "A run as lines of its files."
    base, lines = _base_config(tables), {name: [] for name in FILES}
    lines["config"] += [dict(table=BASE[0], row=BASE[1], setting=k, value=write_value(v)) for k, v in base.items()]
    for name, table in tables.items():
        lines["tables"].append(
            dict(
                table=name,
                notebook=table["table"],
                title=table["title"],
                preset=table["preset"],
                device=table["device"],
                versions=_version_id(results, table["versions"]),
                date=table["date"],
                commit=table["commit"],
            )
        )
        for row, key in zip(table["rows"], _keys(table["rows"])):
            here = dict(table=name, row=key)
            kind, config = _config_lines(here, row, base)
            lines["rows"].append(
                {
                    **here,
                    "seeds": " ".join(map(str, row["seeds"])),
                    "status": row["status"],
                    "paper": write_value(row["paper"]),
                    "note": row["note"],
                    "error": row["error"],
                    "config": kind,
                }
            )
            lines["config"] += config
            for file, more in _row_lines(here, row).items():
                lines[file] += more
    lines["others"] = [
        dict(result=name, measure=path, value=write_value(v))
        for name, other in others.items()
        for path, v in flat(other).items()
    ]
    return lines


# and back


def _lists(value: Any) -> Any:
    "A mapping whose names are 0, 1, 2 ... is a list, at any depth."
    if not isinstance(value, dict):
        return value
    made = {name: _lists(part) for name, part in value.items()}
    return list(made.values()) if made and list(made) == [str(i) for i in range(len(made))] else made


def _put(part: dict, path: str, value: Any) -> None:
    "A value at its path in nested mappings."
    *above, last = path.split("/")
    for name in above:
        part = part.setdefault(name, {})
    part[last] = value


def _read_row(line: Mapping[str, str], lines: Mapping[str, list[dict]], base: Mapping[str, Any]) -> dict[str, Any]:
    "A row as wegformer.experiment.run_row gave it."
    seeds, settings = line["seeds"].split(), {c["setting"]: read_value(c["value"]) for c in lines["config"]}
    config = dict(none=None, base={**base, **settings}, own=settings)[line["config"]]
    measures, stages, metrics, own = {}, {s: [] for s in seeds}, {s: {} for s in seeds}, {}
    for m in lines["measures"]:
        value = read_value(m["value"])
        if m["stage"]:
            _put(metrics[m["seed"]], f"{m['stage']}/{m['measure']}", value)
        elif m["seed"]:
            measures.setdefault(m["measure"], []).append(value)
        else:
            _put(own, m["measure"], value)
    for c in lines["classes"]:
        place = metrics[c["seed"]][c["stage"]]
        for name in c["measure"].split("/") if c["measure"] else ():
            place = place[name]
        place.setdefault("iou", {})[c["class"]] = read_value(c["iou"])
        counts = [int(v) for k, v in c.items() if k not in FILES["classes"] and v]
        if counts:
            place.setdefault("confusion", []).append(counts)
    for s in lines["stages"]:
        stages[s["seed"]].append(
            dict(stage=s["stage"], folder=s["folder"], seconds=float(s["seconds"]), peak_gib=float(s["peak_gib"]))
        )
    row = dict(
        name=re.sub(r" #\d+$", "", line["row"]),
        miou=None,
        std=None,
        seeds=[int(s) for s in seeds],
        pseudo_label_miou=None,
        paper=read_value(line["paper"]),
        status=line["status"],
        error=line["error"] or None,
        note=line["note"],
        config=config,
        measures=measures,
        stages=[found for found in stages.values() if found],
        metrics=[_lists(found) for found in metrics.values() if found],
    )
    return row | summary(row) | own


def _read_run(folder: Path) -> tuple[dict[str, dict], dict[str, Any]]:
    "The tables of a run and its other results, by name."
    lines = {name: read_csv(folder / f"{name}.csv") for name in FILES}
    of: dict[tuple[str, str], dict[str, list[dict]]] = {}
    for name in ("measures", "classes", "stages", "config"):
        for line in lines[name]:
            of.setdefault((line["table"], line["row"]), dict(measures=[], classes=[], stages=[], config=[]))[
                name
            ].append(line)
    nothing = dict(measures=[], classes=[], stages=[], config=[])
    base = {line["setting"]: read_value(line["value"]) for line in of.get(BASE, nothing)["config"]}
    tables = {
        t["table"]: dict(
            table=t["notebook"],
            title=t["title"],
            preset=t["preset"],
            rows=[],
            versions=read_versions(folder.parent, t["versions"]),
            device=t["device"],
            date=t["date"],
            commit=t["commit"],
        )
        for t in lines["tables"]
    }
    for line in lines["rows"]:
        tables[line["table"]]["rows"].append(_read_row(line, of.get((line["table"], line["row"]), nothing), base))
    others: dict[str, dict] = {}
    for line in lines["others"]:
        others.setdefault(line["result"], {})[line["measure"]] = read_value(line["value"])
    return tables, {name: nested(leaves) for name, leaves in others.items()}


@cache
def load(
    run: str,  # name of a run: a folder in `results`
    results: Path = RESULTS,
) -> dict[str, dict]:  # NAME -> what NAME.json held, with the date and the commit of the record
    "What a run measured: each table as `wegformer reproduce` wrote it, and each other result."
    tables, others = _read_run(results / run)
    if not tables and not others:
        known = ", ".join(sorted(p.name for p in results.iterdir() if p.is_dir()))
        raise FileNotFoundError(f"{results / run} holds no record; there are: {known}")
    return tables | others


@cache
def load_rows(
    name: str,  # NAME.csv in `results`
    results: Path = RESULTS,
) -> list[dict[str, Any]]:
    "What a benchmark measured, line by line; a column that a line lacks is absent."
    return [{k: read_value(v) for k, v in line.items() if v} for line in read_csv(results / f"{name}.csv")]


# recording


def _commit() -> str:
    "The commit whose code was run, if this is a checkout."
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return done.stdout.strip()


def _once(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without tracebacks, which name this machine's folders, and without what its stages repeat of it.

    AssertionError where a stage was made on another device or with other versions: a record names one of each.
    """
    if table.get("mixed"):
        raise AssertionError(f"{table['table']} has stages of several machines or versions ({table['mixed']})")

    def stage(found: Mapping) -> dict:
        return {k: v for k, v in found.items() if k not in ("device", "versions")}

    rows = [{k: v for k, v in row.items() if k != "traceback"} for row in table["rows"]]
    for row in rows:
        if "stages" in row:
            row["stages"] = [[stage(s) for s in seed] for seed in row["stages"]]
    return {k: v for k, v in table.items() if k != "mixed"} | dict(rows=rows)


def record(
    files: Mapping[str, Any],  # NAME -> what NAME.json holds
    run: str,  # a folder in `results`
    results: Path = RESULTS,
    day: str = "",  # default: today
    commit: str = "",  # default: this checkout's
) -> Path:  # the run's folder
    "Keep tables of `wegformer reproduce`, and other results, in a run's folder; those of the same name are replaced."
    tables, others = _read_run(results / run)
    for name, held in files.items():
        if isinstance(held, Mapping) and {"table", "rows", "versions"} <= held.keys():
            tables[name] = dict(_once(held), date=day or str(date.today()), commit=commit or _commit())
        else:
            others[name] = held
    lines = _as_lines(tables, others, results)
    for name, header in FILES.items():
        write_csv(
            results / run / f"{name}.csv",
            list(dict.fromkeys([*header, *(key for line in lines[name] for key in line)])),
            lines[name],
        )
    load.cache_clear()
    kept = load(run, results)
    for name, held in (tables | others).items():
        if kept[name] != held:
            raise AssertionError(f"{name} does not read back from {results / run} as it was")
    return results / run


def append(
    file: Mapping[str, Any] | Sequence[Mapping],  # of a benchmark: its rows, and around them their setting
    name: str,  # NAME.csv in `results`
    results: Path = RESULTS,
    day: str = "",  # default: today
    commit: str = "",  # default: this checkout's
) -> Path:
    "Add a benchmark's rows to NAME.csv, each with its setting; older ones stay, and the last that fits counts."
    rows, about = (
        (file["rows"], {k: v for k, v in file.items() if k != "rows"}) if isinstance(file, Mapping) else (file, {})
    )
    setting = about.pop("setting", {}) | about
    if "versions" in setting:
        setting["versions"] = _version_id(results, setting["versions"])
    setting |= dict(date=day or str(date.today()), commit=commit or _commit())
    new = [{k: write_value(v) for k, v in {**flat(dict(row)), **flat(setting)}.items()} for row in rows]
    path = results / f"{name}.csv"
    old = [{k: v for k, v in line.items() if v} for line in read_csv(path)]
    write_csv(path, list(dict.fromkeys(key for line in [*old, *new] for key in line)), [*old, *new])
    load_rows.cache_clear()
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a run's folder, or a benchmark's .json file")
    parser.add_argument(
        "--name", required=True, help="the run's folder in the records, or the benchmark's file there, without .csv"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    args = parser.parse_args(argv)
    if args.source.is_dir():
        files = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(args.source.glob("*.json"))}
        if not files:
            parser.error(f"{args.source} holds no .json file")
        print(record(files, args.name, args.results))
    elif args.source.is_file():
        print(append(json.loads(args.source.read_text(encoding="utf-8")), args.name, args.results))
    else:
        parser.error(f"{args.source} is neither a folder nor a file")


if __name__ == "__main__":
    main()
