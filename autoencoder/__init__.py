"""Field <-> latent: blocks, the model, exact heads, decoder-error model, its training."""
