"""What a model learns from two answers of which one is preferred, or neither: one class each."""

from lowdim.core.registry import register

_HERE = "lowdim.train.preference"
register(
    "preference",
    "dpo",
    f"{_HERE}.dpo:DPO",
    title="Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    arxiv="2305.18290",
    year=2023,
)
register(
    "preference",
    "ipo",
    f"{_HERE}.ipo:IPO",
    title="A General Theoretical Paradigm to Understand Learning from Human Preferences",
    arxiv="2310.12036",
    year=2023,
)
register(
    "preference",
    "todo",
    f"{_HERE}.todo:TODO",
    title="TODO: Enhancing LLM Alignment with Ternary Preferences",
    arxiv="2411.02442",
    year=2024,
)
