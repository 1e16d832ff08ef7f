"""Encode the sound of a dataset's shards by a trained VAE, on any number of workers. See conf/encode_latents.yaml.

    python data_prep/encode_latents.py vae=runs/vta_sam-0/vae/model shards=DIR
    python data_prep/encode_latents.py vae=FOLDER shards=s3://bucket/shards out=DIR   # training: data.latents=DIR
    torchrun --nproc-per-node 8 data_prep/encode_latents.py vae=FOLDER shards=DIR     # or srun: each takes its share
"""

from vta_sam.runtime.cli import program
from vta_sam.settings import EncodeSettings


def count_shards(settings) -> int:
    """Of all splits, which an array of jobs divides among its tasks."""
    from vta_sam.dataset.shards.schema import read_dataset

    info = read_dataset(settings["shards"])
    return sum(len(info.shards(split)) for split in info.splits)


@program("encode_latents", EncodeSettings, writes_to=("out", "rank", "world"), shards=count_shards)
def main(settings):
    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.dataset.shards.latents import batch_samples_on, encode_dataset, latents_folder, plan_latents
    from vta_sam.dataset.shards.schema import read_dataset
    from vta_sam.dataset.shards.storage import storage_of
    from vta_sam.runtime.distributed import choose_device, share_of_plan, share_of_work
    from vta_sam.runtime.progress import terminal_progress
    from vta_sam.training.codec_stages import load_codec

    device = choose_device(settings.device, settings.threads)
    rank, world = share_of_work(settings.rank, settings.world)
    vae, root = settings.vae, storage_of(settings.shards, settings.out)
    info = read_dataset(root)
    spec = read_recipe(vae).spec
    info.require(str(root), sample_rate_hz=spec.sample_rate_hz)
    codec, _ = load_codec(vae, spec)  # the folder's name has a hash of its weights
    planned = plan_latents(root, info, codec, latents_folder(root, info, codec), rank, world,
                           share_of_plan(settings.rank, settings.world),
                           4 * codec.latent_channels * codec.latent_freq * spec.columns, settings.consecutive)
    planned.plan.say()
    if settings.plan:
        return
    out, done, total = planned.out, 0, sum(shard.records for shard in planned.mine)
    share = f" ({rank + 1} of {world})" if world > 1 else ""
    with terminal_progress(f"latents into {out}{share}") as show:
        show(done, total, 0)

        def advance(records: int) -> None:
            nonlocal done
            done += records
            show(done, total, 0)

        complete = encode_dataset(root, info, codec.to(device), out, rank, world, advance, planned,
                                  batch_samples_on(device))
    print(f"{out} is complete" if complete else
          f"{out}: this share is done; other workers' shards are missing still, the last worker writes latents.json")


if __name__ == "__main__":
    main()
