"""Measure the cost of epochs, targets and sweeps, as `ikd bench` does."""

from ikd_ray.commands.main import run_script

if __name__ == "__main__":
    run_script("bench")
