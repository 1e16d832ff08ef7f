"""Fetch and check the weights that others have released. See docs/weights.md.

    python data_prep/weights.py list
    python data_prep/weights.py fetch extraction sam_vit_h      # names and groups of names
    python data_prep/weights.py check
    python data_prep/weights.py import audioldm-s-full.ckpt models/audioldm    # then train.py vae=models/audioldm
    python data_prep/weights.py import ckpt/vta-ldm-clip4clip-v-large models/vta_ldm    # then generate.py model=…
    python data_prep/weights.py random extraction --folder out/random    # to try the path without a download
"""

import argparse
import sys
from pathlib import Path

from vta_sam.runtime.cli import run


def parse() -> argparse.Namespace:
    from vta_sam.checkpoints.registry import DEFAULT_FOLDER, VARIABLE

    parser = argparse.ArgumentParser(description="Fetch and check the weights that others have released.")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", help=f"where they lie (default: ${VARIABLE}, else {DEFAULT_FOLDER}/)")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", parents=[common], help="what there is, and what of it lies in the folder")
    fetch = verbs.add_parser("fetch", parents=[common], help="get what is missing; goes on where it broke off")
    fetch.add_argument("names", nargs="+", metavar="NAME", help="names and groups, as `list` shows them")
    fetch.add_argument("--again", action="store_true", help="replace files that are wrong")
    check = verbs.add_parser("check", parents=[common], help="compare sizes and checksums")
    check.add_argument("names", nargs="*", metavar="NAME", help="default: all that are there")
    chance = verbs.add_parser("random", help="networks of random numbers in the same layout: they see nothing")
    chance.add_argument("names", nargs="+", metavar="NAME", help="names and groups, as `list` shows them")
    chance.add_argument("--folder", required=True, help="where to write them; never the folder of released weights")
    chance.add_argument("--narrow", action="store_true", help="language models and CLIP of two thin layers")
    into = verbs.add_parser("import", parents=[common], help="a released checkpoint into a model folder of ours")
    into.add_argument("checkpoint", help="audioldm-s-full.ckpt, or a folder of AudioLDM (diffusers), Tango or VTA-LDM")
    into.add_argument("out", help="the model folder to write")
    into.add_argument("--parts", action="append", default=[], metavar="FOLDER", help="where parts that it names may "
                      "lie (a scheduler's numbers, an encoder), beside its own folder and that of released weights")
    into.add_argument("--set", action="append", default=[], metavar="KEY=NAME", help="a part under another name than "
                      "the checkpoint gives it")
    return parser.parse_args()


def named(given: list[str]) -> dict[str, str]:
    """KEY=NAME … ⇒ {key: name}."""
    from vta_sam.runtime.errors import InputError

    for pair in given:
        if "=" not in pair:
            raise InputError(f"--set {pair}: expected KEY=NAME")
    return dict(pair.split("=", 1) for pair in given)


@run
def main() -> None:
    arguments = parse()
    from rich.console import Console

    from vta_sam.checkpoints import registry
    from vta_sam.checkpoints import weights_report as report

    console = Console(highlight=False)
    if arguments.verb == "import":
        from vta_sam.checkpoints.model_folder import read_recipe
        from vta_sam.importers.named_models import import_checkpoint

        folders = [*map(Path, arguments.parts), registry.weights_folder(arguments.folder)]
        accounts = import_checkpoint(Path(arguments.checkpoint), Path(arguments.out), folders, named(arguments.set))
        for account in accounts:
            console.print(account.path, *account.lines(), sep="\n  ", soft_wrap=True, markup=False)
        console.print(f"{arguments.out} is there; licence: {read_recipe(arguments.out).about['licence']}",
                      soft_wrap=True, markup=False)
        return
    folder = registry.weights_folder(arguments.folder)
    entries = registry.find_entries(getattr(arguments, "names", []))
    if arguments.verb == "list":
        console.print(report.listing(entries, folder))
    elif arguments.verb == "check":
        found = []
        for line, right in report.check(entries, folder, absent_too=bool(arguments.names)):
            console.print(line, soft_wrap=True, markup=False)
            found.append(right)
        if not found:
            console.print(f"nothing to check in {folder}", soft_wrap=True, markup=False)
        sys.exit(0 if all(found) else 1)
    elif arguments.verb == "random":
        from vta_sam.importers.random_weights import write_random

        for entry in entries:
            place = write_random(entry.name, folder, narrow=arguments.narrow)
            console.print(f"{place} is there, of random numbers", soft_wrap=True, markup=False)
    else:
        report.fetch_all((file for entry in entries for file in entry.files), folder, arguments.again)
        for entry in entries:
            console.print(f"{folder / entry.place} is there", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
