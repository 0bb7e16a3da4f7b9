import torch

from lowdim.core.random import derive_seed, generator


def test_same_purpose_same_numbers():
    draws = [torch.rand(8, generator=generator(1, "noise", 3, "a.b")) for _ in range(2)]
    assert torch.equal(*draws)


def test_every_part_of_the_purpose_counts():
    purposes = [(0,), (1,), (0, "a"), (0, 1), (0, "1"), (0, "a", "b"), (0, "ab"), (0, "b", "a")]
    assert len({derive_seed(*p) for p in purposes}) == len(purposes)
    # torch's CPU generator keeps the low 32 bits of a seed
    assert len({derive_seed(*p) % 2**32 for p in purposes}) == len(purposes)


def test_the_seed_is_the_same_everywhere():
    # sha256(b'[0, "layer", 3]'), first eight bytes little-endian, halved
    assert derive_seed(0, "layer", 3) == 577491683568666517


def test_the_global_generator_is_untouched():
    before = torch.get_rng_state()
    torch.rand(4, generator=generator(7, "x"))
    assert torch.equal(torch.get_rng_state(), before)
