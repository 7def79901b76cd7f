"""Latent dynamics: schedule, denoiser, sampler, backbone, rollout, packages, scores, report, command line."""
