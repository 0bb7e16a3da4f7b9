"""Ranks of samples within their class, as a directory that other runs read."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lowdim.core.files import read_json
from lowdim.core.lazy import torch
from lowdim.core.settings import Range, check
from lowdim.data.errors import DataError
from lowdim.data.select.groups import Groups, of_classes
from lowdim.runs.directory import Directory

if TYPE_CHECKING:
    from lowdim.data.classification import Dataset

JSON, CSV, TENSORS = "ranks.json", "ranks.csv", "ranks.safetensors"


def samples_hash(data: Dataset) -> str:
    """Return the SHA-256 of the training samples, their classes and their order: what ranks belong to."""
    digest = hashlib.sha256(repr((data.classes, data.shape, str(data.train.x.dtype))).encode())
    for tensor in data.train:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Ranks:
    """A rank of each training sample within its class: 1 is the most spurious, the last the least.

    Attributes:
        rank: int64 [samples], from 1; samples of a class may share one.
        label: int64 [samples], the class.
        classes: the classes' names.
        data: `samples_hash` of what was ranked.
        method: name of the selector.
        settings: of the selector.
        names: of the samples, each once: files or row numbers.
        values: further numbers of each sample, fp32 [samples], by name.
        facts: what else the selector found, as JSON can hold it.

    Raises:
        DataError: lengths differ, a rank is below 1, a label is no class, or two samples have one name.
    """

    rank: torch.Tensor
    label: torch.Tensor
    classes: tuple[str, ...]
    data: str
    method: str
    settings: Mapping[str, Any]
    names: tuple[str, ...] = ()
    values: Mapping[str, torch.Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.rank)
        if not self.names:
            object.__setattr__(self, "names", tuple(map(str, range(count))))
        sizes = {"label": len(self.label), "names": len(self.names)} | {k: len(v) for k, v in self.values.items()}
        for name, size in sizes.items():
            if size != count:
                raise DataError(f"{name} has {size} entries, and there are {count} ranks")
        if not count or int(self.rank.min()) < 1:
            raise DataError("ranks start at 1, and there is at least one")
        if int(self.label.min()) < 0 or int(self.label.max()) >= len(self.classes):
            raise DataError(f"labels must lie between 0 and {len(self.classes) - 1}, the classes")
        if len(set(self.names)) < count:
            twice = Counter(self.names).most_common(1)[0][0]
            raise DataError(f"two samples are called {twice!r}. Give each a name of its own.")

    def __len__(self) -> int:
        return len(self.rank)

    # ---------------------------------------------------------------- what ranks say

    def last(self) -> torch.Tensor:
        """Return the highest rank of each class, int64 [classes]; 0 for a class without samples."""
        return torch.zeros(len(self.classes), dtype=torch.int64).scatter_reduce(0, self.label, self.rank, "amax")

    def check(self, data: Dataset) -> Self:
        """Return these ranks if they are of this data's training samples.

        Raises:
            DataError: they are of others; says what decides.
        """
        if (found := samples_hash(data)) != self.data:
            raise DataError(
                f"the ranks are of other samples (hash {self.data[:12]}) than the training part of {data.name!r} "
                f"({found[:12]}), which has {len(data.train.y):,}. The same data, settings, size, validation, limit "
                "and seed make the same samples: repeat the ranking with those of this run, or train with its own."
            )
        return self

    def groups(self, share: float = 0.05) -> Groups:
        """Make two groups of each class: its spurious samples, and those that conflict with what is spurious.

        The last rank of a class conflicts; the rank before it joins, whole, as long as no more than ``share`` of the
        class conflict, and so on. Rank 1 never does.

        Args:
            share: of a class that may conflict, in [0, 1]; only a last rank that is larger by itself exceeds it.

        Raises:
            RecipeError: ``share`` is out of range.
            DataError: a class has one rank alone, so that nothing tells its samples apart.
        """
        check("share", share, Range(least=0, most=1))
        conflicting = torch.zeros(len(self), dtype=torch.bool)
        for number, name in enumerate(self.classes):
            mine = self.label == number
            counts = torch.bincount(self.rank[mine])
            present = counts.nonzero().flatten().tolist()
            if len(present) == 1:
                raise DataError(
                    f"all {int(mine.sum())} samples of class {name!r} share one rank, so that they make one group. "
                    "Rank with a higher p_crit or a lower rate, or leave groups out."
                )
            taken, cut = 0, 0
            for rank in reversed(present[1:]):
                if taken and taken + int(counts[rank]) > share * int(mine.sum()):
                    break
                taken, cut = taken + int(counts[rank]), rank
            if present:
                conflicting |= mine & (self.rank >= cut)
        return of_classes(self.label, conflicting, self.classes)

    # ---------------------------------------------------------------- on disk

    def write(self, directory: Directory, **more: Any) -> None:
        """Write the three files of ranks into a directory that is open; ``more`` stands in the JSON as well."""
        from safetensors.torch import save

        tensors = {"rank": self.rank, "label": self.label, **{f"values.{k}": v for k, v in self.values.items()}}
        content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        directory.write(TENSORS, lambda file: file.write(content), len(content))
        directory.write_text(CSV, self._table())
        told = {"method": self.method, "settings": dict(self.settings), "data": self.data, "samples": len(self)}
        directory.write_json(JSON, told | {"classes": list(self.classes), "facts": dict(self.facts)} | more)

    def _table(self) -> str:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["sample", "class", "rank", *self.values])
        columns = [[f"{value:.6g}" for value in column.tolist()] for column in self.values.values()]
        labels = [self.classes[label] for label in self.label.tolist()]
        rows.writerows(zip(self.names, labels, self.rank.tolist(), *columns, strict=True))
        return text.getvalue()

    def save(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write ``ranks.csv``, ``ranks.safetensors`` and ``ranks.json`` into a directory of their own; return it.

        Raises:
            OutputError: the directory exists, or cannot be written.
        """
        with Directory(out, overwrite) as directory:
            directory.begin({"ranks": self.data})
            self.write(directory)
            return directory.finish()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read the directory that `save` or ``lowdim rank`` wrote.

        Raises:
            DataError: it holds no ranks, or its files do not belong together.
        """
        from safetensors.torch import load_file

        home = Path(path)
        missing = [name for name in (JSON, CSV, TENSORS) if not (home / name).is_file()]
        if missing:
            raise DataError(f"{home} holds no ranks: {', '.join(missing)} is missing. Write some with 'lowdim rank'.")
        told, tensors = read_json(home / JSON), load_file(home / TENSORS)
        text = (home / CSV).read_bytes().decode("utf-8", "replace")
        head_row, *rows = list(csv.reader(io.StringIO(text))) or [[]]
        stored = [f"values.{name}" for name in head_row[3:]]
        values = {name.removeprefix("values."): tensors[name] for name in stored if name in tensors}
        head = {key: told[key] for key in ("data", "method", "settings", "facts")}
        names = tuple(row[0] for row in rows)
        found = cls(tensors["rank"], tensors["label"], tuple(told["classes"]), **head, names=names, values=values)
        if found._table() != text:
            raise DataError(f"{home / CSV} and {home / TENSORS} hold different ranks. Write them again together.")
        return found
