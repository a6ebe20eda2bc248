"""Settings of a fit that takes a second or two on the tiny atlas."""

from dataclasses import replace

from scamac_scale.config import ModelConfig, PhaseConfig, ScamacConfig, StartConfig, TrainConfig

ALL_TERMS = ("reconstruction", "layers", "similarity", "clustering")
QUICK = ScamacConfig(
    n_clusters=4,
    model=ModelConfig(encoder_width=32, latent_width=8, bank_cells=32),
    start=StartConfig(landmark_cells=200, components=(5, 10)),
    train=TrainConfig(
        batch_cells=64,
        pretrain=PhaseConfig(epochs=2),
        rounds=2,
        phases=(PhaseConfig(terms=ALL_TERMS, epochs=1, schedule="cosine"),),
        accelerator="cpu",
    ),
)
STREAMED = replace(QUICK, loader=replace(QUICK.loader, cache="none"))
