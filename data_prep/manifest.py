"""Write the manifest that extraction reads, from VGGSound's csv or from any folder of videos.

    python data_prep/manifest.py vggsound --csv vggsound.csv --videos DIR --out DIR/manifest.csv --val 500
    python data_prep/manifest.py folder --videos DIR --out DIR/manifest.csv --captions captions.csv
    python data_prep/manifest.py folder --videos DIR --out DIR/manifest.csv --recursive --caption-from folder --val 100

Skipped clips and the reasons are listed beside it in manifest.left_out.csv. No video is opened.
"""

from vta_sam.runtime.cli import parsed, run
from vta_sam.runtime.errors import InputError
from vta_sam.settings.tools import MANIFEST


@run
def main() -> None:
    verb, options = parsed(__doc__, MANIFEST)
    if options.out.exists() and not options.overwrite:
        raise InputError(f"{options.out} is there already; choose another --out, or give --overwrite")
    from rich import print as show
    from rich.progress import Progress

    from vta_sam.dataset.manifests.folder import folder_draft, vggsound_draft

    given = options.model_dump(exclude={"out", "overwrite", "plan"})
    if verb == "vggsound":
        draft = vggsound_draft(**given)
    else:
        with Progress(disable=not options.same_content) as bar:
            task = bar.add_task("files of equal size", total=None)
            draft = folder_draft(**given, progress=lambda done, files: bar.update(task, completed=done, total=files))
    if options.plan:
        from rich.console import Console

        return draft.plan(options.out).show(Console())
    left_out = draft.write(options.out)
    show(draft.summary(options.out, left_out))


if __name__ == "__main__":
    main()
