import pytest

from lowdim.report.draw.grid import Grid, kind_of, layers_of, mean_error, mean_sparsity, short_names


@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("model.layers.12.self_attn.q_proj", 12, "self_attn.q_proj"),
        ("transformer.h.0.mlp.c_fc", 0, "mlp.c_fc"),
        ("gpt_neox.layers.3.attention.query_key_value.weight", 3, "attention.query_key_value"),
        ("model.layers.2.mlp.experts.2.up_proj", 2, "mlp.experts.*.up_proj"),
        ("model.layers.2.mlp.experts.gate_up_proj[7]", 2, "mlp.experts.gate_up_proj[*]"),
        ("lm_head", None, "lm_head"),
        ("layers.5", 5, "layers.*"),
        ("odd", 4, "odd"),
    ],
)
def test_kind_is_the_name_without_numbers(name, block, kind):
    assert kind_of(name, block) == kind


def test_short_names_stay_different():
    kinds = ["self_attn.q_proj", "mlp.experts.*.up_proj", "mlp.shared.up_proj", "up_proj"]
    shorts = short_names(kinds)
    assert shorts["self_attn.q_proj"] == "q_proj"
    assert shorts["mlp.shared.up_proj"] == "shared.up_proj"
    assert len(set(shorts.values())) == len(kinds)


def test_numbers_of_a_layer(manifest):
    name = "model.layers.4.mlp.up_proj"
    layer = next(layer for layer in layers_of(manifest) if layer.name == name)
    entry = manifest["layers"][name]
    assert (layer.block, layer.kind, layer.numel) == (4, "mlp.up_proj", 1536 * 576)
    assert (layer.sparsity, layer.error) == (entry["sparsity"], entry["error"])
    assert layer.value == manifest["allocation"]["values"][name]
    assert layer.mask == manifest["hashes"]["masks"][name]


def test_block_mean_weighs_layers_by_their_size(manifest):
    grid = Grid(layers_of(manifest))
    block = [entry for entry in manifest["layers"].values() if entry["block"] == 7]
    zeros = sum(entry["numel"] - entry["nonzeros"] for entry in block)
    assert grid.per_block(mean_sparsity)[7] == pytest.approx(zeros / sum(entry["numel"] for entry in block))


def test_experts_share_a_cell():
    entry = {"numel": 10, "nonzeros": 5, "sparsity": 0.5, "block": 0}
    layers = {f"layers.0.experts.{i}.up": {**entry, "error": 0.1 * i} for i in range(4)}
    layers["layers.1.up"] = {**entry, "block": 1, "error": None}
    grid = Grid(layers_of({"layers": layers}))
    assert grid.labels == ["*.up", "up"] or grid.labels[0] != grid.labels[1]
    assert grid.table(mean_error) == [[pytest.approx(0.15), None], [None, None]]
    assert grid.table(mean_sparsity) == [[0.5, None], [None, 0.5]]
