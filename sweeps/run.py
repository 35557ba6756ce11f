"""Distil students of a teacher, as `ikd run` does."""

from ikd_ray.commands.main import run_script

if __name__ == "__main__":
    run_script("run")
