"""Several processes that train together against one: clips a second on this machine, by DDP over gloo (NCCL on GPUs).

    python benchmarks/processes.py --size embedded --worlds 1 2
    python benchmarks/processes.py --size embedded --worlds 1 2 --threads 1

Random features, the whole batch of a step divided among the processes, each with ``--threads`` (default: its share of
the cores). What reading data takes is not part of it: see scaling.py.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from typing import Any

from _report import Report, median, parser
from step import STAGES, batch_of, job_of, module_of

from vta_sam.runtime.cli import run

DIMENSIONS = {"frame_dim": 64, "object_dim": 32, "caption_dim": 32}


def worker(rank: int, world: int, port: int, options: Any, found: Any) -> None:
    """One of ``world`` processes: whole steps (forward, backward with its exchange, gradient's norm, optimiser)."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world),
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from vta_sam.runtime.distributed import Processes
    from vta_sam.training.optimisation import attention_kernels

    torch.set_num_threads(options.threads or max(1, (os.cpu_count() or 1) // world))
    processes, device = Processes.of_environment(), "cuda" if torch.cuda.is_available() else "cpu"
    job = job_of(options.exp, options.size)
    settings = job.fit[options.stage]
    with processes.connected(), attention_kernels(device):
        torch.manual_seed(0)
        module = module_of(job, options.stage, DIMENSIONS).to(device)
        batch = batch_of(job, settings["batch_size"] // world, DIMENSIONS).to(device)
        module.forward = lambda: module.training_step(batch, 0)
        wrapped = DistributedDataParallel(module) if world > 1 else module
        optimiser = module.configure_optimizers()["optimizer"]
        times = []
        for _ in range(2 + options.repeat):
            began = time.perf_counter()
            with warnings.catch_warnings(), torch.autocast(device, torch.bfloat16, enabled=options.bf16):
                warnings.simplefilter("ignore")  # self.log() says that there is no trainer
                loss = wrapped()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    if processes.first:
        found["step_s"] = median(times[2:])
        found["gradient_mb"] = sum(p.numel() * 4 for p in module.parameters() if p.requires_grad) / 1e6
        found["clips"] = len(batch) * world
        found["threads"] = torch.get_num_threads()


def measure(world: int, options: Any) -> dict[str, Any]:
    import torch.multiprocessing as mp

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with mp.Manager() as manager:
        found = manager.dict()
        mp.spawn(worker, (world, port, options, found), nprocs=world)
        return dict(found)


@run
def main() -> None:
    arguments = parser("Clips a second of processes that train together.")
    arguments.add_argument("--size", default="embedded", help="a file of conf/size")
    arguments.add_argument("--exp", default="vta_sam", help="a file of conf/exp")
    arguments.add_argument("--stage", choices=STAGES, default="diffusion")
    arguments.add_argument("--worlds", type=int, nargs="+", default=[1, 2], help="numbers of processes")
    arguments.add_argument("--threads", type=int, default=None, help="of each process; default: its share of the cores")
    arguments.add_argument("--repeat", type=int, default=8, help="steps, of which the median counts")
    arguments.add_argument("--bf16", action="store_true", help="in place of fp32")
    options = arguments.parse_args()
    rows = []
    for world in options.worlds:
        found = measure(world, options)
        rows.append({"processes": world, "threads_each": found["threads"], "clips": found["clips"],
                     "step_s": found["step_s"], "clips_per_s": round(found["clips"] / found["step_s"], 1),
                     "gradient_mb": round(found["gradient_mb"], 1)})
        rows[-1]["times_first"] = round(rows[-1]["clips_per_s"] / rows[0]["clips_per_s"], 2)
    title = f"processes that train together: {options.exp}, size {options.size}, {options.stage}"
    Report(title, rows).show(options.json)


if __name__ == "__main__":
    main()
