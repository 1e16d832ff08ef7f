"""Fetch and check the weights that others have released. See docs/weights.md.

    python data_prep/weights.py list
    python data_prep/weights.py fetch extraction sam_vit_h      # names and groups of names
    python data_prep/weights.py check
    python data_prep/weights.py import audioldm-s-full.ckpt models/audioldm    # then train.py vae=models/audioldm
    python data_prep/weights.py import ckpt/vta-ldm-clip4clip-v-large models/vta_ldm    # then generate.py model=…
    python data_prep/weights.py random extraction --folder out/random    # to try the path without a download
"""

import sys

from vta_sam.runtime.cli import parsed, run
from vta_sam.settings.tools import WEIGHTS


@run
def main() -> None:
    verb, options = parsed(__doc__, WEIGHTS)
    from rich.console import Console

    from vta_sam.checkpoints import registry
    from vta_sam.checkpoints import weights_report as report

    console = Console(highlight=False)
    folder = registry.weights_folder(options.folder)
    if verb == "import":
        return import_model(options, folder, console)
    entries = registry.find_entries(list(getattr(options, "names", ())))
    if verb == "list":
        console.print(report.listing(entries, folder))
    elif verb == "check":
        found = []
        for line, right in report.check(entries, folder, absent_too=bool(options.names)):
            console.print(line, soft_wrap=True, markup=False)
            found.append(right)
        if not found:
            console.print(f"nothing to check in {folder}", soft_wrap=True, markup=False)
        sys.exit(0 if all(found) else 1)
    elif verb == "random":
        from vta_sam.importers.random_weights import random_plan, write_random

        if options.plan:
            return random_plan([entry.name for entry in entries], folder).show(console)
        for entry in entries:
            place = write_random(entry.name, folder, narrow=options.narrow)
            console.print(f"{place} is there, of random numbers", soft_wrap=True, markup=False)
    elif options.plan:
        report.fetch_plan(entries, folder, options.again).show(console)
    else:
        report.fetch_all((file for entry in entries for file in entry.files), folder, options.again)
        for entry in entries:
            console.print(f"{folder / entry.place} is there", soft_wrap=True, markup=False)


def import_model(options, folder, console):
    """A released checkpoint into a model folder; folder: of released weights."""
    from vta_sam.checkpoints.model_folder import read_recipe
    from vta_sam.importers.named_models import import_checkpoint, import_plan

    if options.plan:
        return import_plan(options.checkpoint, options.out).show(console)
    named = dict(pair.split("=", 1) for pair in options.set)
    accounts = import_checkpoint(options.checkpoint, options.out, [*options.parts, folder], named)
    for account in accounts:
        console.print(account.path, *account.lines(), sep="\n  ", soft_wrap=True, markup=False)
    console.print(f"{options.out} is there; licence: {read_recipe(options.out).about['licence']}",
                  soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
