"""The Python interface, for scripts and notebooks: `ikd_ray.sweep`, `ikd_ray.open_sweep` and `ikd_ray.distill`."""

import warnings

with warnings.catch_warnings():
    # In a notebook tqdm asks for ipywidgets, for bars of Hugging Face libraries that nothing here shows.
    warnings.filterwarnings("ignore", "IProgress not found")
    import tqdm.auto  # noqa: F401
