from __future__ import annotations

import numpy as np
import pytest
import torch

from lowdim.data.corpus.cache import Part
from lowdim.data.errors import DataError
from lowdim.train.pretrain.sequences import IGNORED, Batches, Sequences, Streamed

STREAM = Part(np.arange(50, dtype=np.uint16), np.array([0, 20, 21, 50]))


def test_packed_sequences_predict_every_token_but_the_first_once() -> None:
    sequences = Sequences(STREAM, 8, True, whole=True)
    targets = torch.cat([sequences.micro([row]).targets[0] for row in range(len(sequences))])
    assert targets[targets != IGNORED].tolist() == [*range(1, 50)]
    assert len(Sequences(STREAM, 8, True)) == 6


def test_documents_apart_are_cut_and_filled_up() -> None:
    sequences = Sequences(STREAM, 8, False)
    assert (len(sequences), sequences.passed_over) == (2, 1)  # a document of one token predicts nothing
    micro = sequences.micro([0, 1])
    assert micro.ids.tolist() == [[*range(8)], [*range(21, 29)]]
    assert micro.targets.tolist() == [[*range(1, 9)], [*range(22, 30)]]
    assert Sequences(STREAM, 24, False).micro([0, 1]).counted == 19 + 24


def test_answers_alone_count() -> None:
    counted = np.zeros(50, np.bool_)
    counted[[5, 6, 40]] = True
    part = Part(STREAM.ids, STREAM.starts, counted, np.array([5, 1, 19]))
    assert Sequences(part, 24, False).micro([0, 1]).targets[0, 4:6].tolist() == [5, 6]
    short = Sequences(part, 8, False)
    assert (len(short), short.passed_over) == (1, 2)  # the answer of the last begins beyond the length
    assert short.micro([0]).counted == 2


@pytest.mark.parametrize(("packed", "length"), [(True, 50), (False, 8)])
def test_too_little_text_is_told(packed: bool, length: int) -> None:
    part = STREAM if packed else Part(STREAM.ids[:3], np.array([0, 1, 2, 3]))
    with pytest.raises(
        DataError,
        match="50 tokens, fewer than one sequence of 51" if packed else "no document of the training text has two",
    ):
        Sequences(part, length, packed)


def test_a_stream_is_shuffled_among_neighbours_and_the_same_from_any_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lowdim.train.pretrain.sequences.WINDOW", 4)
    documents = [[*range(10)], [*range(10, 25)]]  # six sequences of four in a pass, the last token is left over
    text = Streamed(lambda: iter(documents), 4)
    alone = [Batches(text, 3, 1, 7).step(step) for step in range(4)]
    rows = torch.cat([micro.ids for step in alone for micro in step])[:, 0].tolist()
    assert sorted(rows[:4]) == [0, 4, 8, 12] and sorted(rows[4:8]) == [0, 4, 16, 20]  # the second pass begins
    later = next(iter(Batches(Streamed(lambda: iter(documents), 4), 3, 1, 7).step(2)))
    assert later.ids[:, 0].tolist() == rows[6:9]
    again = next(iter(Batches(text, 3, 1, 7).step(0)))
    assert again.ids[:, 0].tolist() == rows[:3] and again.counted == 12
    with pytest.raises(DataError, match="no sequence of 31 tokens"):
        Streamed(lambda: iter(documents), 30).micro([0])


def test_ranks_and_parts_share_a_step_and_a_pass_sees_all_once() -> None:
    sequences = Sequences(STREAM, 4, True)  # twelve of them
    alone = [micro.ids for step in range(3) for micro in Batches(sequences, 8, 1, 0).step(step)]
    rows = torch.cat(alone)[:, 0].tolist()
    assert sorted(rows[:12]) == sorted(rows[12:]) == [*range(0, 48, 4)]
    assert rows[:12] != rows[12:]
    shared = [
        micro.ids
        for part in range(2)
        for rank in range(3)
        for micro in [[*Batches(sequences, 8, 2, 0, rank, 3).step(0)][part]]
    ]
    assert torch.equal(torch.cat(shared), alone[0])
    later = Batches(sequences, 8, 1, 0)
    assert torch.equal(next(iter(later.step(2))).ids, alone[2])  # from any step on
    with pytest.raises(DataError, match=r"batch=8 .* 3 processes with accumulate=4; batch must be at least 12"):
        Batches(sequences, 8, 4, 0, 0, 3)
