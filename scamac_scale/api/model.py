"""Fit a model, predict with it, save and load it. Everything heavy is imported when it is called."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, Unpack, overload

from scamac_scale.api.joining import joined_as
from scamac_scale.api.progress import reports
from scamac_scale.config import Attention, Count, IngestConfig, ScamacConfig, joined_key, whole
from scamac_scale.errors import InputError
from scamac_scale.ranks.place import find_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import anndata as ad

    from scamac_scale.api.files import Data
    from scamac_scale.api.labels import AnnotateOptions
    from scamac_scale.fitted import FittedModel
    from scamac_scale.ranks.world import World
    from scamac_scale.train.run.folder import RunFolder
    from scamac_scale.train.run.place import RunPlace


class ScAMAC:
    """Clusters single cells with scAMAC, at any number of cells.

    Parameters
    ----------
    n_clusters
        Number of clusters K, or ``"auto"``; None leaves what `config` says.
    batch_key
        Column of obs, or several, that tell the technical batch (donor, chip, technology) of a cell; None leaves what `config` says.
    seed
        Every random choice derives from it; None leaves what `config` says.
    config
        All settings; the default is one recipe for all data.

    Examples
    --------
    >>> model = ScAMAC(n_clusters=8).fit("atlas.h5ad")
    >>> model.predict("atlas.h5ad").obs["scamac_cluster"]
    """

    def __init__(
        self,
        n_clusters: Count | None = None,
        *,
        batch_key: str | Sequence[str] | None = None,
        seed: int | None = None,
        config: ScamacConfig | None = None,
    ) -> None:
        settings = config or ScamacConfig()
        if batch_key is not None:
            settings = replace(settings, batch_key=joined_key(batch_key))
        if n_clusters is not None:
            settings = replace(settings, n_clusters=whole(n_clusters))
        if seed is not None:
            settings = replace(settings, seed=whole(seed))
        self.config = settings
        self._fitted: FittedModel | None = None

    def __repr__(self) -> str:
        state = f"{self.fitted.n_clusters} clusters" if self._fitted else "not fitted"
        key = "" if self.config.batch_key is None else f", batch_key={self.config.batch_key!r}"
        return f"ScAMAC(n_clusters={self.config.n_clusters!r}{key}, seed={self.config.seed}): {state}"

    @property
    def fitted(self) -> FittedModel:
        """The fitted model.

        Raises
        ------
        InputError
            Before `fit` or `load`.
        """
        if self._fitted is None:
            raise InputError("this ScAMAC is not fitted; call fit(data) or ScAMAC.load(path) first.")
        return self._fitted

    @property
    def report(self) -> dict[str, Any]:
        """What the fit says of itself: cells, clusters, steps, seconds by part, versions."""
        return self.fitted.provenance

    @reports
    def fit(
        self,
        data: Data,
        *,
        run: str | Path | None = None,
        ingest: IngestConfig | None = None,
        resume: bool = False,
    ) -> Self:
        """Fit to all cells.

        Parameters
        ----------
        data
            Training store, or anything that `ingest` takes: such data is normalised on the fly.
        run
            New folder for the settings, metrics, TensorBoard files, checkpoints and the model, or a place for it in a bucket
            (``s3://bucket/runs/1``); None keeps nothing. Several processes (torchrun, srun) call this alike and share the folder.
        ingest
            How raw data is read; a store brings its own.
        resume
            Go on from the last checkpoint in `run`, if there is one; a finished run of these cells and settings is loaded as it is.

        Returns
        -------
        ScAMAC
            Itself, fitted.

        Raises
        ------
        ConfigError, InputError, StoreError
            If settings or data cannot be used.
        NumericalError
            If the loss is not finite.
        StoppedError
            After SIGTERM, SIGINT or SIGUSR1, where there is a `run`: a checkpoint is saved.
        LostRankError
            If another process does not answer.
        """
        from scamac_scale.train.checks import check_ranks, check_settings

        check_settings(self.config)
        place = find_place()
        if run is None:
            check_ranks(0, self.config.train, place.world, has_folder=False)
            self._fitted = self._fit(data, self._ingest_as_fitted(ingest), None, place.world)
            return self

        from scamac_scale.durable.alike import check_alike
        from scamac_scale.train.run.folder import RunFolder, result_settings
        from scamac_scale.train.run.place import find_run

        home = find_run(run)
        if resume and (finished := self._load_finished(data, self._ingest_as_fitted(ingest), home)) is not None:
            self._fitted = finished
            return self
        with joined_as(self.config, place) as world:
            check_alike({"run folder": str(home), "setting": result_settings(self.config)}, world)
            with RunFolder(home, self.config, resume=resume, world=world) as folder:
                self._fitted = self._fit(data, self._ingest_as_fitted(ingest), folder, world)
        return self

    def _ingest_as_fitted(self, ingest: IngestConfig | None) -> IngestConfig:
        """How raw data is read: its genes are ranked in the technical batches of the fit, unless said otherwise."""
        ingest, key = ingest or IngestConfig(), self.config.batch_key
        return replace(ingest, batch_key=key) if ingest.batch_key is None and key not in (None, "none") else ingest

    def _load_finished(self, data: Data, ingest: IngestConfig, run: RunPlace) -> FittedModel | None:
        """Load the model of a finished run, see `load_finished`; every rank does so alone, for the others may have gone."""
        from scamac_scale.sources import cells_digest, open_source, tell_tech_batches
        from scamac_scale.train.run.finished import load_finished

        def digest() -> str:
            with open_source(data, ingest=ingest) as source:
                tell_tech_batches(source, self.config.batch_key)
                return cells_digest(source)

        return load_finished(run, self.config, digest, is_first=find_place().world.rank == 0)

    def _fit(self, data: Data, ingest: IngestConfig, folder: RunFolder | None, world: World) -> FittedModel:
        from scamac_scale.fitted import save_model
        from scamac_scale.ranks.collectives import from_first
        from scamac_scale.ranks.signals import Signals
        from scamac_scale.sources import open_source, tell_tech_batches
        from scamac_scale.train.fit import fit

        with ExitStack() as stack:
            source = stack.enter_context(open_source(data, ingest=ingest, loader=self.config.loader))
            tell_tech_batches(source, self.config.batch_key)
            # until all is written: a signal after the last step would lose the fit, and the rest takes a moment
            signals = stack.enter_context(Signals()) if folder is not None else None
            fitted = fit(source, source.gene_space, self.config, folder, world, signals)
            fitted.to("cpu")
            if folder is not None:
                from_first(lambda: str(save_model(fitted, folder.model_path)), world)
                from_first(lambda: folder.finish(fitted.provenance), world)  # no rank leaves before all is written
        return fitted

    @overload
    def predict(
        self,
        data: Data,
        out: None = None,
        *,
        denoised: bool = False,
        matrix: str = "X",
        gene_column: str | None = None,
        attention: Attention = "trained",
        batch_key: str | Sequence[str] | None = None,
        denoised_batch: str = "own",
        accept: str | Sequence[str] = (),
        n_clusters: int | None = None,
        cut: float | None = None,
        levels: str | int | Sequence[int] = (),
        resume: bool = False,
        dask: Any = None,
        workers: int | None = None,
    ) -> ad.AnnData: ...

    @overload
    def predict(
        self,
        data: Data,
        out: str | Path,
        *,
        denoised: bool = False,
        matrix: str = "X",
        gene_column: str | None = None,
        attention: Attention = "trained",
        batch_key: str | Sequence[str] | None = None,
        denoised_batch: str = "own",
        accept: str | Sequence[str] = (),
        n_clusters: int | None = None,
        cut: float | None = None,
        levels: str | int | Sequence[int] = (),
        resume: bool = False,
        dask: Any = None,
        workers: int | None = None,
    ) -> Path | str: ...

    @reports
    def predict(
        self,
        data: Data,
        out: str | Path | None = None,
        *,
        denoised: bool = False,
        matrix: str = "X",
        gene_column: str | None = None,
        attention: Attention = "trained",
        batch_key: str | Sequence[str] | None = None,
        denoised_batch: str = "own",
        accept: str | Sequence[str] = (),
        n_clusters: int | None = None,
        cut: float | None = None,
        levels: str | int | Sequence[int] = (),
        resume: bool = False,
        dask: Any = None,
        workers: int | None = None,
    ) -> ad.AnnData | Path | str:
        """Predict cells, those of the fit or new ones.

        Parameters
        ----------
        data
            As of `fit`; genes are matched by name, at least half of the model's must be there.
        out
            Zarr or h5ad to stream to, or a URL of one (``s3://bucket/result.zarr``); None gives an AnnData. Several processes call
            this alike and write one output.
        denoised
            Add ``layers["scamac_denoised"]``, log-normalised units.
        matrix
            Where raw data holds its values: X, raw, or a layer.
        gene_column
            Column of var that names the genes as the fit does; None takes its index, or, where that has too few of them, the column that
            has most.
        attention
            ``trained``, or ``atlas``: every cell attends to all cells of `data`, which takes time that grows with the square of
            their number.
        batch_key
            Columns of obs that stand for those of the fit; None takes the same names. Cells of a technical batch that the fit has not seen
            are placed among the others by sums over them.
        denoised_batch
            Technical batch in which cells are reconstructed: ``own``, ``mean`` (of all), or the name of one.
        accept
            In what cells may differ from the fit, which is refused otherwise: ``values``, ``totals``, ``versions``; see `PredictOptions`.
        n_clusters
            Clusters into which the tree of the model is cut anew; the fit's own number gives the fit's own clusters.
        cut
            Height at which it is cut instead, 0 to 1.
        levels
            Numbers of coarser and finer clusters beside the others, each nested in the next: ``(5, 20)`` adds ``obs["scamac_cluster_5"]`` and
            ``obs["scamac_cluster_20"]``.
        resume
            Go on with what a prediction into `out` that was stopped has left, if it has; a finished one is left as it is.
        dask, workers
            As of `ingest`: dask workers predict, on their CPUs; `data` is a path that they see, too.

        Returns
        -------
        AnnData, Path or str
            In memory, or where it lies. Rows in the order of the input: ``obs["scamac_cluster"]``, ``obsm["X_scAMAC"]``,
            ``obsm["scamac_membership"]``, ``uns["scamac"]``, ``uns["dendrogram_scamac_cluster"]``; where technical batches are corrected, also
            ``obsm["X_scAMAC_uncorrected"]``.

        Raises
        ------
        ConfigError
            If several processes have no `out`, `out` was begun with another model, data or other options, `attention` is not known, or the
            tree cannot be cut so.
        InputError
            If the data does not fit the model.
        OutputError
            If `out` exists or cannot be written.
        StoppedError
            After SIGTERM, SIGINT or SIGUSR1, where there is an `out`: what was done is kept beside it.
        LostRankError
            If another process does not answer.
        """
        from scamac_scale.fitted import on_gpu
        from scamac_scale.infer.options import PredictOptions, accepted_names, counts_of
        from scamac_scale.infer.output.place import find_out
        from scamac_scale.infer.predict import check_ranks, predict
        from scamac_scale.infer.spread import spread_over
        from scamac_scale.ranks.collectives import from_first
        from scamac_scale.sources import open_source

        fitted, place = self.fitted, find_place()
        home = None if out is None else find_out(out)
        options = PredictOptions(
            is_denoised=denoised,
            attention=attention,
            batch_key=joined_key(batch_key),
            denoised_batch=denoised_batch,
            accept=accepted_names(accept),
            n_clusters=None if n_clusters is None else whole(n_clusters),
            cut=cut,
            levels=counts_of(levels),
        )
        check_ranks(home, place.world)
        with joined_as(self.config, place) as world:
            if home is not None:
                from_first(lambda: home.check(resume=resume), world)
            with ExitStack() as stack:
                ingest, accepted = IngestConfig(matrix=matrix, gene_column=gene_column), options.accept
                source = stack.enter_context(open_source(data, fitted.genes, ingest=ingest, accepted=accepted))
                spread = stack.enter_context(spread_over(data, ingest, dask, workers))
                if spread is None:
                    stack.enter_context(on_gpu(fitted))
                return predict(fitted, source, home, options, world=world, resume=resume, spread=spread)

    @overload
    def annotate(
        self, reference: Data, label: str, data: Data, out: None = None, **options: Unpack[AnnotateOptions]
    ) -> ad.AnnData: ...

    @overload
    def annotate(
        self, reference: Data, label: str, data: Data, out: str | Path, **options: Unpack[AnnotateOptions]
    ) -> Path | str: ...

    @reports
    def annotate(
        self, reference: Data, label: str, data: Data, out: str | Path | None = None, **options: Unpack[AnnotateOptions]
    ) -> ad.AnnData | Path | str:
        """Predict cells, and give them the labels of a reference.

        Parameters
        ----------
        reference
            Labelled cells with the genes of the model: the store or the data of the fit, or others; as of `predict`.
        label
            Column of obs of the reference; cells without a label are left out.
        data, out
            As of `predict`.
        **options
            Of `scamac_scale.api.labels.AnnotateOptions`: ``unknown=0.05``, ``unlabelled``, ``held_out``, and those of `predict`.

        Returns
        -------
        AnnData, Path or str
            As of `predict`, with ``obs["scamac_label"]`` and ``obs["scamac_label_probability"]``, the probability of the most likely
            label, also where that is not given because it is too small; ``uns["scamac"]["labels"]`` says how they were found.

        Raises
        ------
        ConfigError, InputError, OutputError, StoppedError, LostRankError
            As of `predict`; an InputError also if the label column is missing or cannot be used, a TypeError for an unknown option.
        """
        from scamac_scale.api.labels import AnnotateOptions, Reference, annotate

        if unknown := [name for name in options if name not in AnnotateOptions.__annotations__]:
            raise TypeError(
                f"annotate has no option {unknown[0]!r}; it has {', '.join(AnnotateOptions.__annotations__)}"
            )
        return annotate(self.fitted, Reference(reference, label), data, out, options)

    def save(self, path: str | Path) -> Path:
        """Write the model folder (safetensors and JSON); see `load`."""
        from scamac_scale.fitted import save_model

        return save_model(self.fitted, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a model folder, such as ``RUN/model`` or ``s3://bucket/runs/1/model``."""
        from scamac_scale.fitted import load_model

        fitted = load_model(path)
        model = cls(config=fitted.config)
        model._fitted = fitted
        return model
