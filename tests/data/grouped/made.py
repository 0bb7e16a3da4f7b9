"""Miniature copies of the folders that people unpack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, value: int, size: tuple[int, int] = (20, 30)) -> Path:
    """Write a picture of one grey value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def urbancars(root: Path) -> None:
    names = ("urban", "country")
    for ratio, part, count in (("0.95", "train", 3), ("0.5", "val", 1), ("0.5", "test", 1)):
        home = root / f"bg-{ratio}_co_occur_obj-{ratio}" / part
        for x in names:
            for y in names:
                for z in names:
                    many = count if (x == y == z or part != "train") else 1
                    for n in range(many):
                        picture(home / f"obj-{x}_bg-{y}_co_occur_obj-{z}" / f"{n}.jpg", 10 * n)


def bar(root: Path) -> None:
    for part in ("train", "test"):
        for action in ("climbing", "diving", "fishing", "racing", "throwing", "vaulting"):
            for n in range(3):
                picture(root / part / f"{action}_{n}.png", 40 * n)


def celeba(root: Path, ending: str = "txt") -> None:
    rows = [(f"{n:06}.jpg", 1 if n % 3 == 0 else -1, 1 if n % 2 else -1, (0, 0, 0, 1, 2)[n % 5]) for n in range(20)]
    for name, *_ in rows:
        picture(root / "img_align_celeba" / name, 100, (178, 218))
    if ending == "txt":
        lines = [str(len(rows)), "Blond_Hair Male", *(f"{n} {b:2} {m:2}" for n, b, m, _ in rows)]
        parts = [f"{n} {p}" for n, *_, p in rows]
    else:
        lines = ["image_id,Blond_Hair,Male", *(f"{n},{b},{m}" for n, b, m, _ in rows)]
        parts = ["image_id,partition", *(f"{n},{p}" for n, *_, p in rows)]
    (root / f"list_attr_celeba.{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / f"list_eval_partition.{ending}").write_text("\n".join(parts) + "\n", encoding="utf-8")


def percent(root: Path, classes: int, inside: bool) -> None:
    """``inside``: whether validation lies in the folder of the percentage, as coloured MNIST's does."""
    home = root / "1pct"
    for c in range(classes):
        for n in range(4):
            picture(home / "align" / str(c) / f"{n}_{c}_{c}.png", 20 * c, (32, 32))
        other = (c + 1) % classes
        picture(home / "conflict" / str(c) / f"9_{c}_{other}.png", 20 * c, (32, 32))
        picture((home if inside else root) / "valid" / f"5_{c}_{other}.png", 20 * c, (32, 32))
        for bias in range(classes):
            picture(root / "test" / str(c) / f"7_{c}_{bias}.png", 20 * c, (32, 32))


def cifar10c(root: Path) -> None:
    draw = np.random.default_rng(0)
    clean = root / "cifar-10-batches-bin"
    clean.mkdir(parents=True)
    for number in (1, 2):
        rows = draw.integers(0, 256, (20, 3073), dtype=np.uint8)
        rows[:, 0] = np.arange(20) % 10
        (clean / f"data_batch_{number}.bin").write_bytes(rows.tobytes())
    home = root / "CIFAR-10-C"
    home.mkdir()
    fog = np.repeat(np.arange(5, dtype=np.uint8), 10)[:, None, None, None] * np.ones((1, 32, 32, 3), dtype=np.uint8)
    np.save(home / "fog.npy", fog)
    np.save(home / "labels.npy", np.tile(np.arange(10, dtype=np.uint8), 5))
