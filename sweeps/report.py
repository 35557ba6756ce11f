"""Draw or check a sweep, as `ikd report` does."""

from ikd_ray.commands.main import run_script

if __name__ == "__main__":
    run_script("report")
