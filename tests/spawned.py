"""Processes that know each other, on this machine: one group of them serves a whole module of tests."""

import os
import socket

import torch
from torch import distributed, multiprocessing


def spawned(worker, folder, *more, count=2, joined=True):
    """What ``worker(rank, folder, *more)`` returns in each of ``count`` processes.

    ``joined``: in a group of gloo's; else the worker joins one itself, by the environment that torchrun would give it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_process, (worker, folder, more, port, count, joined), nprocs=count)
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _process(rank, worker, folder, more, port, count, joined):
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": 0, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
    os.environ |= {name: str(value) for name, value in where.items()}
    torch.set_num_threads(1)
    if joined:
        distributed.init_process_group("gloo")
    torch.save(worker(rank, folder, *more), folder / f"{rank}.pt")
    if joined:
        distributed.destroy_process_group()
