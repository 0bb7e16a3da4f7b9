"""The page of a composition, from made-up results."""

from __future__ import annotations

from typing import Any

from lowdim.report.compose.page import render

EVIL = "<script>alert(1)</script>"


def made(both: bool = True) -> dict[str, Any]:
    orders = {"model": "prune → edit"} | ({"reversed": "edit → prune"} if both else {})
    rows = [
        {
            "measure": "success",
            "title": "edit success",
            "first": 0.0,
            "ideal": 1.0,
            "orders": dict(zip(orders, (0.75, 0.5), strict=False)),
            "unit": "",
            "error": 0.25,
            "sensitivity": 0.25 if both else None,
        },
        {
            "measure": "perplexity",
            "title": "perplexity",
            "first": 17.3,
            "ideal": 17.3,
            "orders": dict.fromkeys(orders, 44.0),
            "unit": "nats",
            "error": 0.93,
            "sensitivity": 0.0 if both else None,
        },
    ]
    broken = [{"kind": "mask", "count": 12, "matrices": 2, "of": 100, "sentence": "12 of 100 pruned weights"}]
    stage = {
        "stage": "edit",
        "settings": {"edits": EVIL, "lr": 5e-5},
        "facts": {"facts": 12, "loss": [7.0, 0.1]},
        "broken": broken,
        "holds": {"mask": {"matrices": 2, "zeros": 100}, "grid": {"matrices": 0}, "rank": {"matrices": 1}},
        "measures": {"success": 0.75, "perplexity": 44.0, "zeros": 0.5},
    }
    return {
        "lowdim": "0.1.0",
        "model": EVIL,
        "orders": orders,
        "sentence": "The order matters most for edit success.",
        "table": rows,
        "stages": {name: [stage] for name in orders},
        "protocol": {"context": 512},
        "machine": {"cpu": "a processor"},
    }


def test_the_page_has_every_measure_breach_and_paper() -> None:
    page = render(made())
    for words in (
        "order-free error",
        "order sensitivity",
        "0.930 nats",
        "12 of 100 pruned weights: put right",
        "mask in 2 matrices, rank in 1 matrix",
        "Modifying Memories in Transformer Models",
        "2012.00363",
        "<svg",
    ):
        assert words.lower() in page.lower(), words
    assert EVIL not in page


def test_one_order_has_no_columns_of_two() -> None:
    page = render(made(both=False))
    assert "Order sensitivity</th>" not in page and "<svg" not in page
