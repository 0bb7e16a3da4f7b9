"""Chase on two ranks: the same channels go on both."""

import datetime
import json

import pytest
import torch
import torch.distributed as dist
from tests.models.channels.nets import net
from tests.ranks import fork_ranks
from tests.train.small import batch
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from lowdim.core.errors import LowdimError
from lowdim.train import Chase, SparseTraining

METHOD = Chase(every=2, channel_every=4, soft=0.5, beta=0.2)


def main(rank, home):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{home}/meet",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    torch.manual_seed(rank)
    found = [run(net("vgg"), wrapped_first, rank) for wrapped_first in (True, False)]
    with pytest.raises(LowdimError, match="sharded"):
        run(fully_shard(net("vgg"), mesh=dist.device_mesh.init_device_mesh("cpu", (2,))), None, rank)
    (home / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def run(model, wrapped_first, rank):
    wrapped = DistributedDataParallel(model) if wrapped_first else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    training = SparseTraining(wrapped, optimizer, sparsity=0.8, method=METHOD, total_steps=12)
    if wrapped_first is False:
        wrapped = DistributedDataParallel(model)
    for step in range(12):
        x, y = batch(step, seed=rank)
        F.cross_entropy(wrapped(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    removed = training._observers["channels"].removed
    return [training.masks.hash(), {name: channels.tolist() for name, channels in removed.items()}]


@pytest.mark.slow
def test_ranks_remove_the_same_channels(tmp_path):
    fork_ranks(main, (tmp_path,), 2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0] == first[1]  # whichever comes first, the wrapper or the masks
    assert sum(map(sum, first[0][1].values())) > 5
