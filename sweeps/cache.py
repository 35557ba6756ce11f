"""Show or clear the cache of an output folder, as `ikd cache` does."""

from ikd_ray.commands.main import run_script

if __name__ == "__main__":
    run_script("cache")
