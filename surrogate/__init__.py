"""Latent dynamics: schedule, denoiser, sampler, backbone, rollout, ensembles, packages, scores, report, command line."""
