"""The program `ikd`, as `python -m ikd_ray`."""

from ikd_ray.commands.main import main

if __name__ == "__main__":
    main()
