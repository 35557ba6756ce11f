"""Export students of a sweep, as `ikd export` does."""

from ikd_ray.commands.main import run_script

if __name__ == "__main__":
    run_script("export")
