"""Sound for videos, for every clip of a dataset's split, or for a caption alone: see conf/generate.yaml."""

import sys
import warnings

from vta_sam.dataset.partition import shards_to_generate
from vta_sam.runtime.cli import program
from vta_sam.settings import GenerateSettings


@program("generate", GenerateSettings, shards=shards_to_generate)
def main(settings):
    from vta_sam.generation.build import identify, newest_model
    from vta_sam.generation.inputs import Sampling, videos_in
    from vta_sam.runtime.distributed import choose_device

    videos = videos_in(settings.video, settings.out) if settings.video else {}
    device = choose_device(settings.device, settings.threads)  # refused before anything is fetched
    from vta_sam.importers.named_models import named_folder

    folder = newest_model() if settings.model is None else named_folder(settings.model)
    if settings.model is None:
        print(f"model: {folder}")
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.generation.build import build_sampler
    from vta_sam.generation.pipeline import load

    sampling = Sampling(settings.guidance, settings.steps, settings.solver, settings.overlap)
    sampler = sampling.applied(build_sampler(read_recipe(folder), folder))  # refused before networks are read
    pipeline = load(folder, device)
    pipeline.sampler = sampler
    if settings.caption_alone:
        generate_for_caption(settings, pipeline, identify(folder))
    elif settings.shards:
        sys.exit(generate_for_split(settings, pipeline, identify(folder)))
    else:
        sys.exit(generate_for_videos(settings, pipeline, identify(folder), videos))


def generate_for_caption(settings, pipeline, model) -> None:
    from vta_sam.generation.videos import generate_caption, Prompt

    prompt = Prompt(caption=settings.caption, negative_caption=settings.negative_caption, seed=settings.seed)
    print(generate_caption(pipeline, prompt, settings.out, model, settings.overwrite))


def generate_for_videos(settings, pipeline, model, videos) -> int:
    """⇒ exit status."""
    from vta_sam.generation.videos import exit_status, generate_videos, Outputs, Prompt
    from vta_sam.runtime.errors import InputError

    prompt = Prompt(
        caption=settings.caption, objects=settings.objects, negative_caption=settings.negative_caption,
        negative_objects=settings.negative_objects, seed=settings.seed,
    )
    outputs = Outputs(settings.out, settings.mix, settings.wav, settings.picture, settings.overwrite)

    def tell(outcome):
        print(*outcome.lines, sep="\n")

    outcomes = generate_videos(pipeline, videos, prompt, outputs, model, tell)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures and len(outcomes) == 1:
        raise InputError(failures[0])
    if failures:
        print(f"{len(failures)} of {len(outcomes)} videos failed:", *failures, sep="\n  ", file=sys.stderr)
    return exit_status(outcomes)


def generate_for_split(settings, pipeline, model) -> int:
    """⇒ exit status."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vta_sam.dataset.shards.storage import storage_of
    from vta_sam.generation.split import count_sounds, generate_split, SplitRequest
    from vta_sam.runtime.distributed import say_share, share_of_work

    request = SplitRequest(storage_of(settings.shards), settings.split, settings.out, settings.samples, settings.seed,
                           *share_of_work(settings.rank, settings.world), settings.batch_size)
    say_share(settings.rank, settings.world)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as bar:
        task = bar.add_task(f"sounds in {request.out}", total=count_sounds(request))
        outcome = generate_split(pipeline, request, model,
                                 lambda made, there: bar.update(task, completed=made + there))
    print(f"{outcome.made} sounds made, {outcome.there} were there; in {request.out}")
    if outcome.failures:
        print(outcome.summary, file=sys.stderr)
    return outcome.exit_status


if __name__ == "__main__":
    main()
