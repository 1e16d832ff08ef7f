"""Sound for videos, for every clip of a dataset's split, or for a caption alone: see conf/generate.yaml."""

import sys
import warnings

from vta_sam.runtime.cli import program
from vta_sam.settings import GenerateSettings


def count_shards(settings) -> int:
    """Of the split, whose clips an array of jobs divides among its tasks."""
    from vta_sam.dataset.shards.schema import read_dataset
    from vta_sam.runtime.errors import InputError

    if settings["shards"] is None:
        raise InputError("launcher.shards_per_job goes with shards=FOLDER; leave it out with video=")
    return len(read_dataset(settings["shards"]).shards(settings["split"]))


@program("generate", GenerateSettings, writes_to=("out", "rank", "world"), shards=count_shards)
def main(settings):
    from vta_sam.generation.build import identify, newest_model
    from vta_sam.generation.inputs import Sampling, videos_in
    from vta_sam.runtime.distributed import choose_device

    videos = videos_in(settings.video, settings.out) if settings.video else {}
    device = choose_device(settings.device, settings.threads)  # refused before anything is fetched
    from vta_sam.importers.named_models import named_folder, to_be_imported

    if settings.plan and (first := to_be_imported(settings.model)):
        return print(f"{settings.model}: {first}; what it makes can be planned after that")
    folder = newest_model() if settings.model is None else named_folder(settings.model)
    if settings.model is None:
        print(f"model: {folder}")
    warnings.formatwarning = lambda message, *_, **__: f"note: {message}\n"
    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.generation.build import build_sampler
    from vta_sam.generation.pipeline import load

    sampling = Sampling(settings.guidance, settings.steps, settings.solver, settings.overlap)
    recipe, model = read_recipe(folder), identify(folder)
    sampler = sampling.applied(build_sampler(recipe, folder))

    def pipeline():
        loaded = load(folder, device, settings.precision)
        loaded.sampler = sampler
        return loaded

    if settings.caption_alone:
        generate_for_caption(settings, sampler, recipe, model, pipeline)
    elif settings.shards:
        sys.exit(generate_for_split(settings, sampler, recipe, model, pipeline))
    else:
        sys.exit(generate_for_videos(settings, sampler, model, pipeline, videos))


def generate_for_caption(settings, sampler, recipe, model, pipeline) -> None:
    from vta_sam.generation.videos import generate_caption, plan_caption, Prompt

    prompt = Prompt(caption=settings.caption, negative_caption=settings.negative_caption, seed=settings.seed)
    planned = plan_caption(prompt, settings.out, model, settings.overwrite, sampler, recipe.spec.samples)
    planned.plan.say(sys.stderr)  # stdout is the path alone
    if not settings.plan:
        print(generate_caption(pipeline(), prompt, settings.out, model, settings.overwrite, planned))


def generate_for_videos(settings, sampler, model, pipeline, videos) -> int:
    """⇒ exit status."""
    from vta_sam.generation.videos import exit_status, generate_videos, Outputs, plan_videos, Prompt
    from vta_sam.media.guarded import GuardedMedia
    from vta_sam.media.video import Kept
    from vta_sam.runtime.errors import InputError

    prompt = Prompt(
        caption=settings.caption, objects=settings.objects, negative_caption=settings.negative_caption,
        negative_objects=settings.negative_objects, seed=settings.seed,
    )
    outputs = Outputs(settings.out, settings.mix, settings.wav, settings.picture, settings.overwrite,
                      Kept(settings.sound, settings.keep_location))

    def tell(outcome):
        print(*outcome.lines, sep="\n")

    with GuardedMedia(settings.limit_s, settings.memory_mb) as media:
        planned = plan_videos(videos, prompt, outputs, model, sampler, media)
        planned.plan.say()
        if settings.plan:
            return 0
        outcomes = generate_videos(pipeline(), videos, prompt, outputs, model, tell, planned, media)
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    if failures and len(outcomes) == 1:
        raise InputError(failures[0])
    if failures:
        print(f"{len(failures)} of {len(outcomes)} videos failed:", *failures, sep="\n  ", file=sys.stderr)
    return exit_status(outcomes)


def generate_for_split(settings, sampler, recipe, model, pipeline) -> int:
    """⇒ exit status."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vta_sam.dataset.shards.storage import storage_of
    from vta_sam.generation.split import generate_split, plan_split, SplitRequest
    from vta_sam.runtime.distributed import share_of_plan, share_of_work

    request = SplitRequest(storage_of(settings.shards), settings.split, settings.out, settings.samples, settings.seed,
                           *share_of_work(settings.rank, settings.world), settings.batch_size, settings.consecutive)
    planned = plan_split(request, model, sampler, recipe.spec, recipe.features,
                         share_of_plan(settings.rank, settings.world))
    planned.plan.say()
    if settings.plan:
        return 0
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    loaded = pipeline()
    with Progress(*columns) as bar:
        task = bar.add_task(f"sounds in {request.out}", total=len(planned.tasks))
        outcome = generate_split(loaded, request, model,
                                 lambda made, there: bar.update(task, completed=made + there), planned)
    print(f"{outcome.made} sounds made, {outcome.there} were there; in {request.out}")
    if outcome.failures:
        print(outcome.summary, file=sys.stderr)
    return outcome.exit_status


if __name__ == "__main__":
    main()
