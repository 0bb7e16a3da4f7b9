"""What can be wrong with data a user handed over, or with data that lowdim must fetch."""

from __future__ import annotations

from pathlib import Path

from lowdim.core.errors import LowdimError


class DataError(LowdimError):
    """A text, a data set or a set of tokens cannot be used as asked."""


class AssetError(LowdimError):
    """A built-in asset cannot be fetched, or what came is not what was pinned."""


TABLE = (
    "no tables. Write JSON lines with a field 'text' (pandas: to_json(path, orient='records', lines=True)), or from "
    "Python give the rows: datasets.load_dataset(...)['train']"
)
PACKED = "no compressed files. Unpack it first, for example with gunzip -k"
_ARRAYS = "no pickles and no arrays; save the ids as .safetensors ('input_ids')"
_MARKUP = "no markup and no office formats. Save its text as .txt first"
REFUSED = {
    suffix: why
    for why, suffixes in (
        (TABLE, ".csv .tsv .tab .psv .parquet .arrow .feather .orc .xls .xlsx .ods .sqlite .db"),
        (PACKED, ".gz .tgz .bz2 .xz .zst .lz4 .zip .tar .7z"),
        (_ARRAYS, ".pt .pth .pkl .pickle .bin .npy .npz"),
        (_MARKUP, ".html .htm .xml .yaml .yml .pdf .doc .docx .odt .rtf .epub"),
    )
    for suffix in suffixes.split()
}


def check_suffix(path: str | Path) -> None:
    """Refuse a file by its name, where that is enough to know that it holds no plain text.

    Raises:
        DataError: names the file and the way out.

    Example:
        >>> check_suffix("notes.TXT")
    """
    why = REFUSED.get(Path(path).suffix.lower())
    if why is not None:
        raise DataError(f"{path}: lowdim reads {why}")
