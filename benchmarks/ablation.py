"""What does each part of the method add? The questions of the paper's Figures 9 and 10, and of our own choices beside them.

Every variant is the default recipe with some settings changed, fitted by the public face to each labelled set of a folder
and told the true number of clusters; its labels are scored by ARI and NMI as quality.py does. Differences are paired: a
variant minus the whole method on the same set and seeds, mean and standard error over the sets.

Figure 9 removes the attention (MSS), the weighing of the scales (MSI), or both (MSA). Figure 10A removes the autoencoder:
without a gradient step the PCA start leaves a latent that is 32 principal components of the network's input, and the same
consensus on the landmarks and one fuzzy sweep cluster it. (The consensus looks at the input as well as at the latent, there
as in the whole method.) Figure 10B removes the self-supervision, Eqs. (12) and (15), and clusters the latent by k-means (on
the landmarks, then one fuzzy sweep), as the paper does, or by our consensus. Only those two losses reach the attention, so
nothing trains it there: the latent is then the plain mean over the scales. For the same reason the attention has no part in
the consensus of any variant, which comes after pretraining: it moves the latent in the rounds, around labelled landmarks.

    python benchmarks/ablation.py --data FOLDER --threads 1 --resume
    python benchmarks/ablation.py --report             # the tables again, from the JSON file
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quality import THREAD_SETTINGS, describe_set, in_words, run_fit, with_error
from record import Results, environment
from rich import box
from rich.console import Console
from rich.table import Table
from sets import GROUPS, family, is_chosen, label_kind
from summary import TIE, summarise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from methods import LabelledSet, Method

    from scamac_scale.config import ScamacConfig

OUT = Path(__file__).resolve().parent / "results" / "ablation.json"
KEY = ("set", "variant", "seed")
WHOLE = "whole"


@dataclass(frozen=True)
class Variant:
    """One row of a table.

    Attributes
    ----------
    title
        For the table.
    figure
        Of the paper: 9, 10A or 10B; empty for those beside it.
    changes
        Part of the config to the fields that differ from the default.
    """

    title: str
    figure: str
    changes: dict[str, dict[str, Any]]

    def config(self) -> ScamacConfig:
        """The default recipe, changed."""
        from scamac_scale.config import ScamacConfig

        default = ScamacConfig()
        parts = {name: replace(getattr(default, name), **fields) for name, fields in self.changes.items()}
        return replace(default, **parts)


UNSUPERVISED = {"similarity": "off", "clustering_weight": 0.0}
KMEANS = {"centers": "kmeans"}
NO_ATTENTION = {"has_synergy": False, "has_integration": False}


def untrained() -> dict[str, Any]:
    """Fields of `TrainConfig` that leave the weights where they start."""
    from scamac_scale.config import PhaseConfig

    return {"pretrain": PhaseConfig(epochs=0), "rounds": 0}


def find_variants() -> dict[str, Variant]:
    """All variants by name, in the order of the tables."""
    return {
        WHOLE: Variant("whole method", "9", {}),
        "no-mss": Variant("-MSS, no attention", "9", {"model": {"has_synergy": False}}),
        "no-msi": Variant("-MSI, no weights of scales", "9", {"model": {"has_integration": False}}),
        "no-msa": Variant("-MSA, neither", "9", {"model": NO_ATTENTION}),
        "no-autoencoder": Variant("-autoencoder, PCA", "10A", {"train": untrained(), "loss": {"similarity": "off"}}),
        "no-self-supervision-kmeans": Variant(
            "-self-supervision, k-means", "10B", {"loss": UNSUPERVISED, "start": KMEANS}
        ),
        "no-self-supervision-consensus": Variant("-self-supervision, consensus", "10B", {"loss": UNSUPERVISED}),
        "autoencoder-only": Variant(
            "autoencoder only, k-means",
            "",
            {"model": {"scales": ("hidden",), **NO_ATTENTION}, "loss": UNSUPERVISED, "start": KMEANS},
        ),
        "similarity-in-batch": Variant("Eq. (15) within the batch", "", {"loss": {"similarity": "batch"}}),
        "membership-target": Variant("Eq. (15) with U as printed", "", {"loss": {"similarity_target": "membership"}}),
        "poisson": Variant("counts held out, Poisson", "", {"loss": {"reconstruction": "poisson"}}),
        "channel-in-batch": Variant("Eq. (11) of the batch", "", {"model": {"channel_form": "batch"}}),
    }


NOTE = (
    "Differences: variant minus whole method, mean over sets ± standard error over sets, same seeds. Worse, better, tied: sets, "
    f"by ARI; tied means less than {TIE}."
)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    variants = list(find_variants())
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCAMAC_DATA"), help="folder of .h5ad files; default $SCAMAC_DATA"
    )
    parser.add_argument("--label", default="cell_type", help="column of obs with the known types")
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds 0 to this minus 1, one after the other for all sets"
    )
    parser.add_argument(
        "--variants", nargs="+", default=variants, choices=variants, metavar="VARIANT", help=f"of {', '.join(variants)}"
    )
    parser.add_argument("--group", choices=GROUPS, default="single", help="which sets of sets.py; others are single")
    parser.add_argument("--sets", nargs="+", help="only these files, without .h5ad, of whatever group")
    parser.add_argument("--threads", type=int, help="threads of every library; default: theirs")
    parser.add_argument("--resume", action="store_true", help="skip what the file holds, of whatever commit")
    parser.add_argument("--report", action="store_true", help="no fits: the tables of what the file holds")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON file")
    options = parser.parse_args(arguments)
    if not options.report and (options.data is None or not Path(options.data).is_dir()):
        parser.error(f"--data {options.data}: not a folder; name one with labelled .h5ad files, or set SCAMAC_DATA.")
    return options


def plan(
    options: argparse.Namespace, sets: Sequence[LabelledSet], done: set[tuple[Any, ...]]
) -> list[tuple[LabelledSet, str, int]]:
    """The fits to run: seed by seed, so that a run that is stopped has all sets; small sets first."""
    by_size = sorted(sets, key=lambda data: data.n_cells)
    fits = [(data, name, seed) for seed in range(options.seeds) for data in by_size for name in options.variants]
    return [fit for fit in fits if not (options.resume and (fit[0].name, *fit[1:]) in done)]


def make_methods(names: Sequence[str]) -> dict[str, Method]:
    """The variants as methods of quality.py."""
    from methods import scamac_method

    from scamac_scale.config import IngestConfig

    known = find_variants()
    return {
        name: scamac_method(known[name].title, known[name].config(), IngestConfig(), is_told=True) for name in names
    }


def run(options: argparse.Namespace, console: Console) -> int:
    """Run all fits that are asked for; the number of those that failed."""
    from methods import LabelledSet, warm_up

    paths = sorted(Path(options.data).glob("*.h5ad"))
    sets = [LabelledSet(path, options.label) for path in paths if is_chosen(path.stem, options.group, options.sets)]
    results = Results(options.out, KEY)
    fits = plan(options, sets, results.done())
    methods = make_methods(options.variants)
    held = results.read()
    described = {data.name: describe_set(data) for data in sets}
    settings = {name: {"title": method.title, "settings": method.settings} for name, method in methods.items()}
    results.update(sets={**held.get("sets", {}), **described}, variants={**held.get("variants", {}), **settings})
    if fits:
        warm_up({"scamac"}, max(data.n_cells for data in sets))
    where, failed, began = environment(), 0, time.perf_counter()
    for index, (data, name, seed) in enumerate(fits):
        outcome = run_fit(methods[name], data, seed)
        results.add({"set": data.name, "variant": name, "seed": seed, **outcome}, where)
        failed += "error" in outcome
        left = (time.perf_counter() - began) / (index + 1) * (len(fits) - index - 1)
        line = f"{index + 1}/{len(fits)}  {data.name}  {name}  seed {seed}  {in_words(outcome)}  ({left / 60:.0f} min left)"
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return failed


def report(options: argparse.Namespace, console: Console) -> None:
    """Sum up the whole file, write the summary into it, and show the tables."""
    results = Results(options.out, KEY)
    runs = [{**run, "method": run["variant"]} for run in results.read()["runs"]]  # the word of summary.py
    variants = find_variants()
    names = [name for name in variants if any(run["variant"] == name and "ari" in run for run in runs)]
    if not names:
        console.print(f"{options.out.name} holds no finished fit.")
        return
    summary = summarise(runs, names, [WHOLE], label_kind, family)
    results.update(summary=summary)
    style = box.MARKDOWN if options.markdown else box.SIMPLE_HEAD
    figure_9 = [name for name in names if variants[name].figure == "9"]
    others = [name for name in names if name == WHOLE or name not in figure_9]
    console.print(ablation_table("Figure 9: attention over cells and over scales", figure_9, summary["all"], style))
    console.print(ablation_table("Figure 10, and choices of ours", others, summary["all"], style))
    console.print(NOTE)
    for run in runs:
        if "error" in run:
            console.print(f"failed: {run['set']} {run['variant']} seed {run['seed']}: {run['error']}", markup=False)


def ablation_table(title: str, names: Sequence[str], summary: dict[str, Any], style: box.Box) -> Table:
    """Means over sets, and paired differences to the whole method."""
    variants = find_variants()
    pairs = {(pair["other"], pair["score"]): pair for pair in summary["pairs"]}
    table = Table(title=title, box=style)
    for column in ("figure", "variant"):
        table.add_column(column, no_wrap=True)
    for column in ("sets", "fits", "ARI", "NMI", "ARI, difference", "NMI, difference", "worse / better / tied", "s"):
        table.add_column(column, justify="right", no_wrap=True)
    for name in names:
        means = summary["methods"][name]
        row = [str(means["sets"]), str(means["runs"]), f"{means['ari']:.3f}", f"{means['nmi']:.3f}"]
        if (name, "ari") in pairs:
            row += [against_whole(pairs[name, score]) for score in ("ari", "nmi")]
            # the pair is the whole method minus the variant: its wins are the sets on which the variant is worse
            row.append("{wins} / {losses} / {ties}".format(**pairs[name, "ari"]))
        else:
            row += [""] * 3
        table.add_row(variants[name].figure, variants[name].title, *row, f"{means['seconds']:.0f}")
    return table


def against_whole(pair: dict[str, Any]) -> str:
    """Variant minus whole method, with its standard error."""
    return with_error(-pair["difference"], pair["standard_error"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and report; 1 if a fit failed."""
    options = parse(arguments)
    if options.threads is not None:
        os.environ.update({name: str(options.threads) for name in THREAD_SETTINGS})
    console = Console(width=None if sys.stdout.isatty() else 200)
    failed = 0 if options.report else run(options, console)
    report(options, console)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
