"""Sound for videos, for every clip of a dataset's split, or for a caption alone: see conf/generate.yaml."""

import sys
import warnings
from pathlib import Path

from vta_sam.dataset.partition import shards_to_generate
from vta_sam.runtime.cli import program, quote_text

PLAIN_TEXT = ("video", "caption", "objects", "negative_caption", "negative_objects", "out", "model", "shards")


@program("generate", shards=shards_to_generate)
def main(config):
    from vta_sam.generation.build import identify, newest_model
    from vta_sam.generation.inputs import Sampling, videos_in
    from vta_sam.runtime.errors import InputError

    alone = bool(config.caption) and not config.video and not config.shards
    if bool(config.video) == bool(config.shards) and not alone:
        raise InputError("name what to generate for: video=FILE, video=FOLDER, shards=FOLDER of a dataset, or with a "
                         "model that reads captions alone caption=WORDS")
    sampling = Sampling(config.guidance, config.steps, config.solver, config.overlap)
    videos = videos_in(Path(config.video)) if config.video else {}
    from vta_sam.importers.named_models import named_folder

    folder = newest_model() if config.model is None else named_folder(config.model)
    if config.model is None:
        print(f"model: {folder}")
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.generation.build import build_sampler
    from vta_sam.generation.pipeline import load
    from vta_sam.runtime.distributed import choose_device

    sampler = sampling.applied(build_sampler(read_recipe(folder), folder))  # refused before networks are read
    pipeline = load(folder, choose_device(config.device, config.threads))
    pipeline.sampler = sampler
    if alone:
        generate_for_caption(config, pipeline, identify(folder))
    elif config.shards:
        generate_for_split(config, pipeline, identify(folder))
    else:
        sys.exit(generate_for_videos(config, pipeline, identify(folder), videos))


def generate_for_caption(config, pipeline, model) -> None:
    from vta_sam.generation.videos import generate_caption, Prompt

    prompt = Prompt(caption=config.caption, negative_caption=config.negative_caption, seed=config.seed)
    print(generate_caption(pipeline, prompt, Path(config.out), model, config.overwrite))


def generate_for_videos(config, pipeline, model, videos) -> int:
    """⇒ exit status."""
    from vta_sam.generation.inputs import word_list
    from vta_sam.generation.videos import exit_status, generate_videos, Outputs, Prompt
    from vta_sam.runtime.errors import InputError

    prompt = Prompt(
        caption=config.caption, objects=word_list(config.objects), negative_caption=config.negative_caption,
        negative_objects=word_list(config.negative_objects), seed=config.seed,
    )
    outputs = Outputs(Path(config.out), config.mix, config.wav, config.picture, config.overwrite)

    def tell(outcome):
        for note in outcome.notes:
            print(f"note: {outcome.video}: {note}")
        end = outcome.failure or f"{outcome.written}{' was there' if outcome.skipped else ''}"
        print(f"{outcome.video}: {'failed' if outcome.failure else end}")

    outcomes = generate_videos(pipeline, videos, prompt, outputs, model, tell)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures and len(outcomes) == 1:
        raise InputError(failures[0])
    if failures:
        print(f"{len(failures)} of {len(outcomes)} videos failed:", *failures, sep="\n  ", file=sys.stderr)
    return exit_status(outcomes)


def generate_for_split(config, pipeline, model) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vta_sam.dataset.shards.storage import storage_of
    from vta_sam.generation.split import count_sounds, generate_split, SplitRequest
    from vta_sam.runtime.distributed import share_of_work
    from vta_sam.runtime.errors import InputError

    words = ("caption", "objects", "negative_caption", "negative_objects")
    if any(config[name] is not None for name in words):
        raise InputError(f"{', '.join(words)} go with video=; a dataset has captions and objects of its own")
    request = SplitRequest(storage_of(config.shards), config.split, Path(config.out), config.samples, config.seed,
                           *share_of_work(config.rank, config.world), config.batch_size)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(f"sounds in {request.out}", total=count_sounds(request))
        made, there = generate_split(pipeline, request, model,
                                     lambda made, there: bar.update(task, completed=made + there))
    print(f"{made} sounds made, {there} were there; in {request.out}")


if __name__ == "__main__":
    sys.argv[1:] = quote_text(sys.argv[1:], PLAIN_TEXT)
    main()
