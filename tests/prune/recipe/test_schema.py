from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lowdim.core import registry
from lowdim.core.errors import RecipeError
from lowdim.core.quantize import Grid
from lowdim.core.recipe import families
from lowdim.core.score import OBS, Magnitude, Wanda
from lowdim.prune.recipe import METHODS, Calibration, Recipe, Targets
from lowdim.prune.repair.sparsegpt import SparseGPT
from lowdim.runs.fingerprint import differences


def refusal(**values: object) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe(**values)
    return str(caught.value)


# ---------------------------------------------------------------- what is accepted


def test_a_sparsity_is_enough() -> None:
    recipe = Recipe(sparsity=0.6)
    assert recipe.target == 0.6
    assert recipe.score == Wanda()
    assert families.name_of("repair", recipe.repair) == "none"
    assert families.name_of("allocation", recipe.allocation) == "uniform"
    assert str(recipe.pattern) == "unstructured"
    assert (recipe.storage, recipe.sequential, recipe.seed, recipe.calibration.samples) == (
        "dense",
        "block",
        0,
        128,
    )


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rounded_weights_are_stored_packed(name: str) -> None:
    recipe = Recipe(sparsity=0.5, quantize=name)
    assert (recipe.storage, recipe.grid) == ("packed", Grid.of(name, 64))
    assert Recipe(sparsity=0.5, quantize=name, quantize_group=128).grid == Grid.of(name, 128)
    assert Recipe(sparsity=0.5).grid is None
    assert Recipe(sparsity=0.5, storage="auto") == Recipe(sparsity=0.5)


@pytest.mark.parametrize("value", ["owl", {"name": "owl"}, {"name": "owl", "m": 5.0}])
def test_a_method_is_a_name_or_a_mapping(value: object) -> None:
    recipe = Recipe(sparsity=0.5, allocation=value)
    assert recipe.allocation == Recipe(sparsity=0.5, allocation=recipe.allocation).allocation
    assert recipe.to_dict()["allocation"]["m"] == 5
    assert isinstance(recipe.to_dict()["allocation"]["m"], float)


def test_a_method_is_also_the_object() -> None:
    recipe = Recipe(sparsity=0.5, score=OBS(damping=0.1), repair=SparseGPT(damping=0.1, block=64))
    assert recipe.to_dict()["repair"] == {"name": "sparsegpt", "damping": 0.1, "block": 64}


def test_an_object_is_checked_like_a_mapping() -> None:
    wrong = SparseGPT(damping=0.1)
    object.__setattr__(wrong, "block", "64")
    assert "repair.block must be a valid integer, got '64'" in refusal(sparsity=0.5, repair=wrong)


@pytest.mark.parametrize(("method", "pair"), METHODS.items())
def test_method_stands_for_score_and_repair(method: str, pair: tuple[str, str]) -> None:
    recipe = Recipe(sparsity=0.5, method=method)
    assert (families.name_of("score", recipe.score), families.name_of("repair", recipe.repair)) == pair
    assert "method" not in recipe.to_dict()


def test_the_methods_of_the_issue_exist() -> None:
    assert METHODS == {
        "magnitude": ("magnitude", "none"),
        "wanda": ("wanda", "none"),
        "sparsegpt": ("obs", "sparsegpt"),
        "refit": ("obs", "refit"),
    }


def test_repair_beside_method_wins() -> None:
    recipe = Recipe(sparsity=0.5, method="wanda", repair="refit")
    assert recipe.score == Wanda()
    assert families.name_of("repair", recipe.repair) == "refit"


@pytest.mark.parametrize(("pattern", "sparsity"), [("2:4", 0.5), ("1:4", 0.75), ("4:8", 0.5), ("6:8", 0.25)])
def test_n_m_implies_the_sparsity(pattern: str, sparsity: float) -> None:
    assert Recipe(pattern=pattern).target == sparsity
    assert Recipe(pattern=pattern, sparsity=sparsity).to_dict()["sparsity"] == sparsity


def test_yaml_true_means_true_sequential() -> None:
    assert Recipe.from_yaml("sparsity: 0.5\nsequential: true").sequential == "true"
    assert Recipe.from_yaml("sparsity: 0.5\nsequential: 'true'").sequential == "true"
    assert Recipe.from_yaml("sparsity: 0.5\nsequential: block").sequential == "block"


def test_short_names_of_types_and_lists_of_tasks() -> None:
    recipe = Recipe(sparsity=0.5, dtype="bf16", compute="fp32", evaluation={"tasks": "piqa, hellaswag"})
    assert (recipe.dtype, recipe.compute, recipe.evaluation.tasks) == (
        "bfloat16",
        "float32",
        ("piqa", "hellaswag"),
    )


def test_a_recipe_cannot_be_changed() -> None:
    recipe = Recipe(sparsity=0.5)
    with pytest.raises(ValueError, match="frozen"):
        recipe.sparsity = 0.6  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.calibration.samples = 5  # type: ignore[misc]


# ---------------------------------------------------------------- which group "auto" is


@pytest.mark.parametrize(
    ("choices", "group"),
    [
        ({"method": "magnitude"}, "matrix"),
        ({"method": "wanda"}, "row"),
        ({"method": "sparsegpt"}, "column-block"),
        ({"score": {"name": "wanda", "variant": True}}, "matrix"),
        ({"allocation": "global"}, "global"),
        ({"method": "sparsegpt", "refine": "dsnot"}, "row"),
        ({"score": {"name": "wanda", "variant": True}, "refine": "dsnot"}, "matrix"),
        ({"method": "wanda", "pattern": {"name": "unstructured", "group": "matrix"}}, "matrix"),
        ({"allocation": "global", "pattern": {"name": "unstructured", "group": "row"}}, "row"),
    ],
)
def test_the_group_follows_from_the_other_choices(choices: dict[str, object], group: str) -> None:
    legal = Recipe(sparsity=0.5, **choices).legal
    assert families.describe("pattern", legal)["group"] == group


def test_other_patterns_are_legal_as_they_are() -> None:
    assert str(Recipe(pattern="2:4").legal) == "2:4"


# ---------------------------------------------------------------- YAML and back


def _settings(kind: str, name: str) -> st.SearchStrategy[dict[str, object]]:
    choices: dict[tuple[str, str], dict[str, st.SearchStrategy[object]]] = {
        ("score", "wanda"): {"variant": st.booleans()},
        ("score", "obs"): {"damping": st.just(0.01)},  # others clash with a repair's own
        ("repair", "sparsegpt"): {"damping": st.floats(1e-6, 1), "block": st.sampled_from([32, 64, 128])},
        ("repair", "refit"): {"iterations": st.integers(1, 500), "tolerance": st.floats(0, 0.1)},
        ("allocation", "owl"): {"pooling": st.sampled_from(["block", "layer"]), "m": st.floats(1.5, 20)},
        ("allocation", "alpha"): {"epsilon": st.floats(0, 0.9)},
        ("refine", "dsnot"): {"max_cycles": st.integers(0, 99), "same_sign": st.booleans()},
        ("pattern", "unstructured"): {"group": st.sampled_from(["auto", "matrix"])},
    }
    fields = choices.get((kind, name), {})
    return st.fixed_dictionaries({"name": st.just(name)}, optional=fields)


def _section(kind: str) -> st.SearchStrategy[object]:
    usable = [name for name in registry.names(kind) if name not in ("explicit", "structured", "block", "nm")]
    return st.sampled_from(usable).flatmap(lambda name: _settings(kind, name) | st.just(name))


RECIPES = st.fixed_dictionaries(
    {"sparsity": st.floats(0, 0.99)},
    optional={
        **{kind: _section(kind) for kind in Recipe.kinds},
        "seed": st.integers(0, 2**63 - 1),
        "sequential": st.sampled_from(["block", "true"]),
        "storage": st.sampled_from(["auto", "packed"]),
        "quantize": st.sampled_from(["none", "int8", "int4"]),
        "dtype": st.sampled_from(["auto", "float16"]),
        "calibration": st.fixed_dictionaries(
            {},
            optional={
                "source": st.text(min_size=1),
                "samples": st.integers(1, 999),
                "seed": st.integers(0, 9),
            },
        ),
        "evaluation": st.fixed_dictionaries(
            {},
            optional={
                "text": st.none() | st.text(min_size=1),
                "tasks": st.lists(st.sampled_from(["piqa", "boolq", "x.jsonl"])),
            },
        ),
        "targets": st.fixed_dictionaries(
            {}, optional={"include": st.lists(st.sampled_from(["attn", r"\.0\.", "2:4"]))}
        ),
    },
).filter(lambda values: "does not go with" not in refused(values))


def refused(values: dict[str, object]) -> str:
    try:
        Recipe(**values)
    except RecipeError as error:
        return str(error)
    return ""


@given(RECIPES)
@settings(deadline=None)
def test_yaml_round_trip(values: dict[str, object]) -> None:
    recipe = Recipe(**values)
    written = recipe.to_yaml()
    again = Recipe.from_yaml(written)
    assert again == recipe
    assert again.to_yaml() == written
    assert again.fingerprint() == recipe.fingerprint()


def test_an_explicit_map_comes_back_from_yaml() -> None:
    recipe = Recipe(sparsity=0.5, allocation={"name": "explicit", "map": {"mlp": 0.25, r"h\.1\.": 0}})
    assert recipe.to_dict()["allocation"] == {"name": "explicit", "map": {"mlp": 0.25, r"h\.1\.": 0.0}}
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "3:8", "1x16", "16x16", "structured"])
def test_every_pattern_comes_back_from_yaml(pattern: str) -> None:
    recipe = Recipe(sparsity=None if ":" in pattern else 0.5, pattern=pattern)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert str(recipe.pattern) == pattern


def test_every_default_is_spelled_out() -> None:
    written = Recipe(sparsity=0.5, method="sparsegpt", allocation="owl", refine="dsnot").to_dict()
    assert {*written, "schema_version", "trust_remote_code"} == set(Recipe.model_fields)
    for kind in Recipe.kinds:
        assert set(written[kind]) == {"name", *registry.find(kind, written[kind]["name"]).settings()}
    assert set(written["calibration"]) == set(Calibration.model_fields)


def test_a_recipe_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("method: wanda\npattern: 2:4\n")
    assert Recipe.from_yaml(file) == Recipe(method="wanda", pattern="2:4")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"- a\n- b", b"5", b"1: 2"])
def test_a_file_that_holds_no_recipe(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "r.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.yaml|must be a mapping"):
        Recipe.from_yaml(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*nowhere\.yaml"):
        Recipe.from_yaml(tmp_path / "nowhere.yaml")


def test_fingerprint_sees_every_field_and_no_order() -> None:
    base = Recipe(sparsity=0.5, seed=1)
    assert base.fingerprint() == Recipe(seed=1, sparsity=0.5).fingerprint()
    changed = [
        Recipe(sparsity=0.5, seed=2),
        Recipe(sparsity=0.51, seed=1),
        Recipe(sparsity=0.5, seed=1, score=Magnitude()),
        Recipe(sparsity=0.5, seed=1, calibration={"samples": 64}),
        Recipe(sparsity=0.5, seed=1, targets={"include": ["attn"]}),
        Recipe(sparsity=0.5, seed=1, quantize="int8"),
        Recipe(sparsity=0.5, seed=1, quantize="int8", quantize_group=128),
    ]
    assert len({base.fingerprint(), *(recipe.fingerprint() for recipe in changed)}) == 8


def test_differences_name_dotted_keys() -> None:
    one = Recipe(sparsity=0.5, method="wanda")
    other = Recipe(sparsity=0.5, method="sparsegpt", calibration={"samples": 64})
    assert differences(one.to_dict(), one.to_dict()) == []
    found = differences(one.to_dict(), other.to_dict())
    assert {"score.name", "repair.name", "repair.block", "calibration.samples"} <= set(found)
    assert "sparsity" not in found


# ---------------------------------------------------------------- what is refused, and how it is said


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({}, ["sparsity", "unstructured", "0.5"]),
        ({"sparsity": 60}, ["sparsity", "60", "below 1", "did you mean 0.6?"]),
        ({"sparsity": "60%"}, ["sparsity", "'60%'", "Did you mean 0.6?"]),
        ({"sparsity": 1.0}, ["sparsity", "got 1", "below 1", "0.9"]),
        ({"sparsity": -0.1}, ["sparsity", "-0.1", "at least 0"]),
        ({"sparsity": float("nan")}, ["sparsity", "nan", "at least 0"]),
        ({"sparsity": True}, ["sparsity", "valid number", "True"]),
        ({"sparsty": 0.5}, ["'sparsty'", "Did you mean 'sparsity'?"]),
        ({"sparsity": 0.5, "samples": 3}, ["'samples'", "Did you mean 'calibration.samples'?"]),
        ({"sparsity": 0.5, "calibration": {"sample": 3}}, ["'calibration.sample'", "'calibration.samples'"]),
        ({"sparsity": 0.5, "calibration": {"samples": 0}}, ["calibration.samples", "greater than", "got 0"]),
        ({"sparsity": 0.5, "calibration": {"samples": "5"}}, ["calibration.samples", "valid integer", "'5'"]),
        (
            {"sparsity": 0.5, "calibration": {"samples": True}},
            ["calibration.samples", "valid integer", "True"],
        ),
        (
            {"sparsity": 0.5, "calibration": {"format": "txt"}},
            ["calibration", "'txt'", "Did you mean 'text'?"],
        ),
        (
            {"sparsity": 0.5, "calibration": {"rationale": True}},
            ["calibration.rationale", "single or concat"],
        ),
        ({"sparsity": 0.5, "calibration": "wiki.txt"}, ["calibration", "mapping of settings", "'wiki.txt'"]),
        ({"sparsity": 0.5, "method": "wandda"}, ["method", "'wandda'", "Did you mean 'wanda'?"]),
        ({"sparsity": 0.5, "allocation": "owll"}, ["allocation", "'owll'", "Did you mean 'owl'?"]),
        (
            {"sparsity": 0.5, "allocation": {"name": "owl", "lamb": 1}},
            ["'allocation.lamb'", "'allocation.lam'"],
        ),
        ({"sparsity": 0.5, "allocation": {"m": 5}}, ["allocation.name", "None", "uniform"]),
        ({"sparsity": 0.5, "allocation": {"name": "uniform", "m": 5}}, ["allocation.m", "owl", "'uniform'"]),
        ({"sparsity": 0.5, "allocation": {"name": "owl", "m": "5"}}, ["allocation.m", "valid number", "'5'"]),
        (
            {"sparsity": 0.5, "allocation": {"name": "owl", "pooling": "blok"}},
            ["allocation.pooling", "'blok'", "Did you mean 'block'?"],
        ),
        ({"sparsity": 0.5, "allocation": 5}, ["allocation", "5", "Choose one of"]),
        ({"sparsity": 0.5, "score": object}, ["score", "Choose one of", "wanda"]),
        (
            {"sparsity": 0.5, "repair": {"name": "sparsegpt", "damping": -1}},
            ["repair.damping must be above 0", "got -1"],
        ),
        ({"sparsity": 0.5, "repair": {"name": "none", "block": 1}}, ["repair.block", "sparsegpt", "'none'"]),
        ({"sparsity": 0.5, "refine": {"name": "dsnot", "max_cycles": -1}}, ["refine.max_cycles", "-1", "50"]),
        ({"sparsity": 0.5, "pattern": "3x"}, ["pattern", "'3x'", "16x16"]),
        ({"pattern": "4:2"}, ["pattern", "4:2", "2:4"]),
        ({"sparsity": 0.5, "pattern": "unstructred"}, ["pattern", "'unstructred'", "'unstructured'"]),
        (
            {"sparsity": 0.5, "pattern": {"name": "unstructured", "group": "rows"}},
            ["pattern.group", "'rows'", "Did you mean 'row'?"],
        ),
        ({"sparsity": 0.5, "storage": "pack"}, ["storage", "'pack'", "Did you mean 'packed'?"]),
        (
            {"sparsity": 0.5, "quantize": "int8", "storage": "dense"},
            ["quantize=int8", "storage=dense", "lowdim convert OUT DENSE --storage dense"],
        ),
        ({"sparsity": 0.5, "quantize_group": 128}, ["quantize_group=128", "quantize=none", "quantize=int8"]),
        ({"sparsity": 0.5, "quantize": "int88"}, ["quantize", "'int88'", "Did you mean 'int8'?"]),
        ({"sparsity": 0.5, "quantize": "int8", "quantize_group": 32}, ["quantize_group", "64 or 128", "32"]),
        ({"sparsity": 0.5, "seed": -1}, ["seed", "greater than or equal to 0", "-1"]),
        ({"sparsity": 0.5, "targets": {"include": ["("]}}, ["targets.include", "'('", "regular expression"]),
        ({"sparsity": 0.5, "evaluation": {"text": ""}}, ["evaluation.text", "at least 1 character"]),
        (
            {"sparsity": 0.5, "evaluation": {"context": 1}},
            ["evaluation.context", "greater than or equal to 2"],
        ),
    ],
)
def test_a_refusal_names_key_value_and_remedy(values: dict[str, object], parts: list[str]) -> None:
    message = refusal(**values)
    for part in parts:
        assert part in message


def test_several_mistakes_are_reported_together() -> None:
    message = refusal(sparsity=0.5, dtype="int4", seed=-1, device="gpu")
    assert all(part in message for part in ("dtype", "'int4'", "seed", "device", "'gpu'"))


def test_a_huge_value_is_not_printed_in_full() -> None:
    assert len(refusal(sparsity=0.5, calibration=["x" * 1000] * 1000)) < 300


# ---------------------------------------------------------------- targets


NAMES = ["h.0.attn.q", "h.0.mlp.up", "h.1.attn.q", "h.1.mlp.up"]


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (Targets(), NAMES),
        (Targets(include=("attn",)), [NAMES[0], NAMES[2]]),
        (Targets(exclude=(r"^h\.0\.",)), NAMES[2:]),
        (Targets(include=("attn", r"1\.mlp"), exclude=(r"h\.0",)), NAMES[2:]),
    ],
)
def test_targets_choose_layers(targets: Targets, chosen: list[str]) -> None:
    assert targets.select(NAMES) == chosen


def test_an_expression_that_matches_nothing_is_refused_with_a_near_name() -> None:
    with pytest.raises(RecipeError, match=r"targets\.include 'atn' matches no weight that can be sparse.*'attn'"):
        Targets(include=("atn",)).select(NAMES)
    with pytest.raises(RecipeError, match=r"targets\.exclude 'lm_head' matches no weight"):
        Targets(exclude=("lm_head",)).select(NAMES)


def test_nothing_left_to_prune_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"targets\.exclude .* leaves none of the 4 layers"):
        Targets(exclude=("h",)).select(NAMES)


# ---------------------------------------------------------------- globs


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (Targets(include=("*.q",)), [NAMES[0], NAMES[2]]),
        (Targets(include=("re:attn", "h.1.mlp.up.weight"), exclude=("re:^h.0",)), NAMES[2:]),
        (Targets(exclude=("h.?.mlp.*", "re:0.attn.q$")), [NAMES[2]]),
    ],
)
def test_schema_2_reads_globs(targets: Targets, chosen: list[str]) -> None:
    assert targets.select(NAMES, schema=2) == chosen


@pytest.mark.parametrize(
    ("expression", "schema", "message"),
    [
        ("h.?.attn.q", 1, "It would match with schema: 2"),
        ("re:attn", 1, "It would match with schema: 2"),
        ("h.0.atn.q", 1, "Did you mean 'h.0.attn.q'"),
        ("attn", 2, r"Did you mean '\*attn\*'"),
        ("re:atn", 2, "Did you mean 're:attn'"),
        ("h.0.mlp.upp", 2, "Did you mean 'h.0.mlp.up.weight'"),
        ("zzz", 2, r"Choose one of: \*attn\*, \*h\*, \*mlp\*, \*q\*, \*up\*, \*weight\*\."),
    ],
)
def test_what_an_expression_that_matches_nothing_may_have_meant(expression: str, schema: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Targets(include=(expression,)).select(NAMES, schema)


def test_a_text_that_is_no_regular_expression_may_be_a_glob() -> None:
    targets = {"include": ["*.q_proj"]}
    assert "or write schema: 2" in refusal(sparsity=0.5, targets=targets)
    assert Recipe(sparsity=0.5, schema=2, targets=targets).targets.include == ("*.q_proj",)
    assert "targets.include 're:('" in refusal(sparsity=0.5, schema=2, targets={"include": ["re:("]})


def test_the_map_of_an_explicit_allocation_is_read_as_targets_are() -> None:
    globs, broken = ({"name": "explicit", "map": {text: 0.25}} for text in ("*.mlp.*", "re:("))
    assert "allocation.map '*.mlp.*' is not a regular expression" in refusal(sparsity=0.5, allocation=globs)
    assert "or write schema: 2" in refusal(sparsity=0.5, allocation=globs)
    assert "allocation.map 're:('" in refusal(sparsity=0.5, schema=2, allocation=broken)
    recipe = Recipe(sparsity=0.5, schema=2, allocation=globs)
    assert recipe.to_dict()["allocation"] == globs
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("schema", [0, 3, "2", 1.5, None])
def test_an_unknown_schema_is_refused(schema: object) -> None:
    assert f"schema must be 1 or 2, got {schema!r}" in refusal(sparsity=0.5, schema=schema)
    assert "'schema_version'" in refusal(sparsity=0.5, schema_version=2)


@given(RECIPES)
@settings(deadline=None)
def test_schema_1_goes_without_saying(values: dict[str, object]) -> None:
    recipe = Recipe(**values)
    assert "schema" not in recipe.to_dict()
    assert Recipe(**values, schema=1).to_yaml() == recipe.to_yaml()


def test_schema_2_is_written() -> None:
    recipe = Recipe(sparsity=0.5, schema=2)
    assert recipe.to_yaml().startswith("schema: 2\n")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert recipe.fingerprint() != Recipe(sparsity=0.5).fingerprint()
    assert differences(recipe.to_dict(), Recipe(sparsity=0.5).to_dict()) == ["schema"]


def test_the_fingerprint_of_today_stays() -> None:
    assert Recipe(sparsity=0.5).fingerprint() == "60932744ebbd938e6ef61c02b9d7512fd754e762ffe40c399f2e93c6bfbb61c5"


def test_the_start_of_text_is_written_where_it_is_not_the_tokenizers() -> None:
    recipe = Recipe(sparsity=0.5, evaluation={"bos": "window"})
    assert recipe.to_dict()["evaluation"]["bos"] == "window"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert differences(recipe.to_dict(), Recipe(sparsity=0.5).to_dict()) == ["evaluation.bos"]


def test_schema_and_globs_from_the_command_line() -> None:
    recipe = Recipe.assemble(None, {"sparsity": 0.5}, ["schema=2", "targets.include='*.q_proj'"])
    assert (recipe.schema_version, recipe.targets.include) == (2, ("*.q_proj",))
    with pytest.raises(RecipeError, match="needs quotes"):
        Recipe.assemble(None, {"sparsity": 0.5}, ["schema=2", "targets.include=*.q_proj"])


# ---------------------------------------------------------------- cost


def test_checking_a_recipe_imports_no_torch() -> None:
    program = (
        "import sys; from lowdim.prune.recipe import Recipe\n"
        "for bad in ({'sparsity': 2}, {'sparsity': 0.7, 'pattern': '2:4'}, {'allocation': 'owll'}):\n"
        "    try: Recipe(**bad)\n"
        "    except ValueError: pass\n"
        "    else: sys.exit('accepted')\n"
        "Recipe(sparsity=0.5, method='refit', allocation='owl', refine='dsnot').fingerprint()\n"
        "sys.exit(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
