# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing

from vastdet.layers.distributed import mean_over_ranks


def run_rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    value = torch.tensor([rank + 1.0, 10.0], requires_grad=True)
    mean = mean_over_ranks(value)
    torch.save({"mean": mean, "value": value.detach()}, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()


def test_one_process_has_its_own_mean() -> None:
    value = torch.tensor([2.0, 3.0], requires_grad=True)
    mean = mean_over_ranks(value)
    assert torch.equal(mean, value)
    assert not mean.requires_grad


def test_two_processes_share_their_mean(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        run_rank, args=(str(tmp_path),), nprocs=2, start_method="fork"
    )
    for rank in range(2):
        result = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert result["mean"].tolist() == [1.5, 10.0]
        assert result["value"].tolist() == [rank + 1.0, 10.0], "the input stays as it was"
