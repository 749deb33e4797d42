"""Make `path label` lists of any source, with a label map, a validation split, and a count of what is missing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from videornn.data.annotations.labels import format_labels
from videornn.data.annotations.load import VideoTable, check_files, load_videos, needs_split
from videornn.data.annotations.plain import format_list
from videornn.errors import UserError
from videornn.system.files import make_folder

MAX_CLASSES_SHOWN = 15


@dataclass(frozen=True)
class ListReport:
    """The result of make_lists: the files written, and the numbers of found and of missing videos per class."""

    files: list[Path]
    class_names: tuple[str, ...]
    num_found: np.ndarray  # int [K]
    num_missing: np.ndarray  # int [K]
    total_found: int  # also where there are no labels
    total_missing: int
    remarks: list[str]

    def table(self) -> Table:
        """Return a table of found and missing videos per class, the worst first: most missing, then fewest found."""
        order = np.lexsort([self.num_found, -self.num_missing])
        table = Table("class", "found", "missing", title=None)
        for column in table.columns[1:]:
            column.justify = "right"
        for index in order[:MAX_CLASSES_SHOWN].tolist():
            table.add_row(self.class_names[index], str(self.num_found[index]), str(self.num_missing[index]))
        if rest := order[MAX_CLASSES_SHOWN:].tolist():
            found, missing = self.num_found[rest].sum(), self.num_missing[rest].sum()
            table.add_row(f"... {len(rest)} more classes", str(found), str(missing))
        table.add_section()
        name = f"all {len(order)} classes" if len(order) else "all, without labels"
        table.add_row(name, str(self.total_found), str(self.total_missing))
        return table


def make_lists(
    source: str,
    out: Path,
    *,
    root: str | None = None,
    labels: str | None = None,
    split: str | None = None,
    fold: int = 1,
    val_share: float | None = None,
) -> ListReport:
    """Write lists of the videos of a source, as load_videos takes it, and labels.txt into a folder.

    A list is named after its split, or after the source; of a folder of official lists with a training and a test list,
    both are written if split is not given. Paths are relative to `out` for videos below it, else absolute. The files of
    plain lists are checked here too, one by one. Missing ones are named in NAME_missing.txt.

    Args:
        val_share: share of the videos of every class that goes to val.txt instead of train.txt; the choice depends on
            their names alone.

    Raises:
        UserError: wrong source; val_share is not in (0, 1); a file to be written exists with other content.
    """
    if val_share is not None and not 0 < val_share < 1:
        raise UserError(f"val_share must lie between 0 and 1, got {val_share:g}")
    splits = ["train", "test"] if split is None and needs_split(source) else [split]
    if val_share is not None and len(splits) > 1:
        raise UserError(f"{source} has a test split already; say split train to divide the training videos further")
    tables: dict[str, VideoTable] = {}
    for name in splits:
        table = _existing(load_videos(source, root=root, labels=labels, split=name, fold=fold))
        tables[name or _name(source)] = table.with_classes(next(iter(tables.values())).class_names) if tables else table
    contents: dict[str, str] = {}
    for name, table in tables.items():
        parts = {name: np.arange(len(table))} if val_share is None else split_by_class(table, val_share)
        contents |= {
            f"{part}.txt": "".join(format_list(_rows(table, rows, out), table.class_names)) for part, rows in parts.items()
        }
        if len(table.missing):
            contents[f"{name}_missing.txt"] = "".join(f"{video}\n" for video in table.missing)
    class_names = next(iter(tables.values())).class_names
    if class_names:
        contents["labels.txt"] = format_labels(class_names)
    return _report(_write_all(out, contents), list(tables.values()))


def split_by_class(table: VideoTable, val_share: float) -> dict[str, np.ndarray]:
    """Split rows into a sorted training and validation part; every class of two or more videos has at least one in each.

    A class is ordered by a hash of the paths relative to the root, so the same videos stay together when others come or go.
    """
    hashes = np.array([_path_hash(table.paths[row]) for row in range(len(table))], np.uint64)
    labels = table.labels
    val = []
    for label in np.unique(labels).tolist():
        rows = np.flatnonzero(labels == label)
        num_val = min(max(1, round(val_share * len(rows))), len(rows) - 1)
        val.append(rows[np.argsort(hashes[rows], kind="stable")][:num_val])
    val_rows = np.sort(np.concatenate(val))
    return {"train": np.setdiff1d(np.arange(len(table)), val_rows), "val": val_rows}


def _path_hash(path: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(path), digest_size=8).digest(), "little")


def _existing(table: VideoTable) -> VideoTable:
    """Return the rows whose file exists; the others become missing ones."""
    if table.files_seen:
        return table
    there = np.fromiter((os.path.exists(table.path(row)) for row in range(len(table))), bool, len(table))
    if there.all():
        return table
    check_files(table)
    return table.without_missing(there)


def _name(source: str) -> str:
    path = Path(source).resolve()
    return path.name if path.is_dir() else path.stem


def _rows(table: VideoTable, rows: np.ndarray, out: Path) -> Iterator[tuple[str, int]]:
    base = os.path.abspath(out)
    labels = table.labels
    for row in rows.tolist():
        path = os.path.abspath(table.path(row))
        if path.startswith(base + os.sep):
            path = os.path.relpath(path, base)
        yield path, int(labels[row])


def _write_all(out: Path, contents: dict[str, str]) -> list[Path]:
    """Write all the files, or none if one of them would replace other content."""
    encoded = {out / name: os.fsencode(text) for name, text in contents.items()}
    for path, content in encoded.items():
        if path.exists() and path.read_bytes() != content:
            raise UserError(f"{path} exists with another content: choose another folder (--out), or remove it")
    make_folder(out)
    for path, content in encoded.items():
        path.write_bytes(content)
    return list(encoded)


def _report(files: list[Path], tables: list[VideoTable]) -> ListReport:
    found, missing = (
        np.concatenate(columns) for columns in zip(*((t.labels, t.missing_labels) for t in tables), strict=True)
    )
    highest = max(found.max(initial=-1), missing.max(initial=-1))
    names = (tables[0].class_names or tuple(f"class {index}" for index in range(highest + 1))) if highest >= 0 else ()
    num_found, num_missing = (np.bincount(labels[labels >= 0], minlength=len(names)) for labels in (found, missing))
    remarks = [remark for table in tables for remark in table.remarks()]
    return ListReport(files, names, num_found, num_missing, len(found), len(missing), remarks)
