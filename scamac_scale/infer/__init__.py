"""Labels, latents and reconstructions of all cells, streamed to an output."""
